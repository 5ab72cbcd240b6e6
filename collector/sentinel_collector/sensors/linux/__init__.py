"""The whole machine, from `/proc` and `/sys` of Linux."""
