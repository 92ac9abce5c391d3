"""Log lines as JSON objects, one a line, with memo's statistics among them; nothing here knows a key or a value."""

import json
import logging
import sys
from datetime import datetime, timezone
from typing import TextIO

import memo


class JSONLines(logging.Formatter):
    """Writes a record, and the fields that it has in `extra={"fields": {...}}`, as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_as_json(stream: TextIO = sys.stdout) -> None:
    """Have all loggers of the process write to a stream, memo's too; where the application begins."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def log_statistics() -> None:
    """Log what each cached function has done since the process began; once a minute, or at the end of a job."""
    logger = logging.getLogger("memo.statistics")
    report = memo.report()
    for name, row in report.rows.items():
        fields = {
            "function": name,
            "calls": row.hits + row.misses,
            "hit_ratio": round(row.hit_ratio, 3),
            "loads": row.loads,
            "load_seconds": round(row.load_seconds, 6),
            "refused_fills": row.refused_fills,
            "uncached": row.uncached,
            "errors": row.errors,
        }
        logger.info("cache statistics", extra={"fields": fields})
    for advice in report.advice:
        logger.warning(advice)
