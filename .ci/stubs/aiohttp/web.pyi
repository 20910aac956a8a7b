from collections.abc import Mapping
from typing import Any

class Request:
    query: Mapping[str, str]
    async def post(self) -> Mapping[str, Any]: ...

class Response:
    def __init__(self, *, status: int = ..., text: str | None = ...) -> None: ...

def json_response(data: object) -> Response: ...
