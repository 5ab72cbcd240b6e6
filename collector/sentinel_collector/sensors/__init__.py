"""What a machine and a process tree use, read as cheaply as the kernel allows."""
