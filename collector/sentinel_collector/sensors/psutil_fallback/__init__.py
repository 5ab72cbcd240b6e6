"""The machine and the tree through psutil, where there is no Linux `/proc`."""
