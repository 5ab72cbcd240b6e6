"""The system and the tree through psutil, where there is no /proc."""
