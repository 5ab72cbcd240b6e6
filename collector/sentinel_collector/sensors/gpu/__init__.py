"""GPUs: NVML, amdgpu, and the thread that talks to the drivers."""
