"""Submits chords and shows what becomes of them.

    chord.py URL API_KEY
"""

import json
import sys
import time
import urllib.error
import urllib.request

URL, KEY = sys.argv[1:3]
BOOK = ["we ring you back", "call us and go on with your life", "the bell rings", "we answer", "you sleep well",
        "nothing is lost", "nothing comes twice unseen", "the end"]


def call(path: str, body=None):
    request = urllib.request.Request(
        URL + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=90) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as refused:
        sys.exit(f"{path}: {refused.code} {refused.read(2000).decode()}")


def chord(chapters, after_failure="cancel"):
    """A job for each chapter, and one that waits for them all. Returns its id."""
    parts = call("/v1/jobs/batch", {"jobs": [{"kind": "count", "input": {"text": text}} for text in chapters]})["data"]
    join = {"kind": "total", "after": [part["id"] for part in parts], "after_failure": after_failure}
    return call("/v1/jobs", join)["id"]


def end_of(job_id: str):
    until = time.monotonic() + 120
    while time.monotonic() < until:
        job = call(f"/v1/jobs/{job_id}?wait_s=20")
        if job["finished_at"]:
            return job
    sys.exit(f"{job_id} did not end within two minutes")


def check(job, status: str, words=None):
    if job["status"] != status or (words is not None and job["result"]["words"] != words):
        sys.exit(f"that is wrong: {job}")


began = time.monotonic()
join = chord(BOOK)
print(f"{len(BOOK)} chapters and {join}, which waits for them, are submitted.")
print("Why it waits:", call(f"/v1/jobs/{join}/explain")["reason"])
job = end_of(join)
check(job, "succeeded", sum(len(text.split()) for text in BOOK))
print(f"After {time.monotonic() - began:.1f} s: {job['status']}, {job['result']}; one after another it would take {len(BOOK)} s.")

damaged = [*BOOK[:2], "", *BOOK[3:]]
job = end_of(chord(damaged))
check(job, "cancelled")
print(f"With an empty chapter: {job['status']}, {job['error']['message']}")
job = end_of(chord(damaged, after_failure="run"))
check(job, "succeeded", sum(len(text.split()) for text in damaged))
print(f'The same with "after_failure": "run": {job["status"]}, {job["result"]}')
