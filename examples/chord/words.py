"""The worker's program: counts the words of a chapter, or adds up what was counted. The job comes on stdin, its result goes to
stdout; 65 is: failed, and no use trying again."""

import json
import sys
import time

job = json.load(sys.stdin)
if job["kind"] == "count":
    time.sleep(1)  # in place of a long chapter
    words = job["input"]["text"].split()
    if not words:
        print("the chapter is empty", file=sys.stderr)
        sys.exit(65)
    result = {"words": len(words)}
else:
    # What became of each job in `after`, in that order: job_id, status, result, error.
    parts = job["after_results"]
    counted = [part["result"]["words"] for part in parts if part["status"] == "succeeded"]
    result = {"words": sum(counted), "chapters": len(counted), "failed": len(parts) - len(counted)}
print(json.dumps(result))
