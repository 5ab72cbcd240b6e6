"""GPUs: NVML, amdgpu, and the thread that calls the drivers."""
