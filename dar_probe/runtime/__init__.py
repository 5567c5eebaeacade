"""The machine: devices, memory, the processes of one job, checks of arguments."""
