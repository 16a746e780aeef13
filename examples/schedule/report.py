"""The task: the job comes on stdin, its result goes to stdout."""

import json
import sys

job = json.load(sys.stdin)
print(json.dumps({"report_of": job["input"]["shop"], "for": job["scheduled_for"] or "now"}))
