"""The Sentinel API as a library: register a run, refresh its credentials, finish it.

```python
from sentinel_uploader.sentinel_api import DataSource, finish_run, register_run

run = register_run(token, {"job_name": "train"})
finish_run(token, run["run_id"], data_source=DataSource.inline, data_csv=csv)
```

Each call makes one attempt and returns the server's response. It raises `SentinelAPIError` for everything else; the
error's `status_code` is `None` without an HTTP response.
"""

from sentinel_uploader.backends.sentinel.api import (
    DataSource,
    RunStatus,
    finish_run,
    refresh_credentials,
    register_run,
)
from sentinel_uploader.backends.sentinel.responses import SentinelAPIError

__all__ = ["DataSource", "RunStatus", "SentinelAPIError", "finish_run", "refresh_credentials", "register_run"]
