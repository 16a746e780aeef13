"""Submits the newsletter, waits until every job has ended, and looks at what came of it.

    newsletter.py URL KEY MAILS READERS PER_S BURST
"""

import json
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from datetime import datetime

URL, KEY, MAILS = sys.argv[1:4]
READERS, PER_S, BURST = map(int, sys.argv[4:7])
ISSUE = f"issue-{uuid.uuid4()}"


def call(path: str, body=None):
    request = urllib.request.Request(
        URL + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as refused:
        sys.exit(f"{path}: {refused.code} {refused.read(2000).decode()}")


def jobs_of_this_issue():
    jobs, cursor = [], ""
    while True:
        page = call(f"/v1/jobs?limit=250&metadata[issue]={ISSUE}{cursor}")
        jobs += page["data"]
        if page["next_cursor"] is None:
            return jobs
        cursor = f"&cursor={page['next_cursor']}"


def one_job(number: int):
    message = {
        "to": f"Reader {number} <reader-{number}@example.com>",
        "subject": "News of the week",
        "text": f"Dear reader {number}, there are no news.",
        "html": f"<p>Dear reader {number}, there are <b>no</b> news.</p>",
    }
    return {"kind": "email", "queue": "mail", "input": message, "metadata": {"issue": ISSUE}}


began = time.monotonic()
call("/v1/jobs/batch", {"jobs": [one_job(number) for number in range(1, READERS + 1)]})
print(f"{READERS} jobs accepted in {time.monotonic() - began:.2f} s, by one call.")

until = time.monotonic() + 60 + READERS / PER_S * 2
while True:
    time.sleep(2)
    jobs = jobs_of_this_issue()
    statuses = Counter(job["status"] for job in jobs)
    print("   ", ", ".join(f"{count} {status}" for status, count in sorted(statuses.items())), flush=True)
    if all(job["finished_at"] for job in jobs) or time.monotonic() > until:
        break
if statuses != {"succeeded": READERS}:
    errors = Counter(job["error"]["message"] for job in jobs if job["error"])
    sys.exit(f"not all were sent: {errors.most_common(3)}")

with open(MAILS) as file:
    mails = [json.loads(line) for line in file]
receivers = Counter(receiver for mail in mails for receiver in mail["to"])
if set(receivers) != {f"<reader-{number}@example.com>" for number in range(1, READERS + 1)}:
    sys.exit(f"{len(receivers)} readers got one; there are {READERS}")
print(f"{len(receivers)} readers got it, {sum(count > 1 for count in receivers.values())} of them twice.")

# The limit is on handing out: within any span of time at most the burst, and the rate times the span.
starts = sorted(datetime.fromisoformat(job["started_at"].replace("Z", "+00:00")).timestamp() for job in jobs)
if any(job["attempt"] > 1 for job in jobs):
    print("Some were tried more than once; only their last starts are looked at.")
lead, least = 0.0, 0.0  # by how much the tightest span had more than the rate alone
for number, start in enumerate(starts):
    ahead = number - (start - starts[0]) * PER_S
    least = min(least, ahead)
    lead = max(lead, ahead - least + 1)
seconds = Counter(int(mail["at"] - mails[0]["at"]) for mail in mails)
span = starts[-1] - starts[0]
print(f"Handed out over {span:.1f} s, {(READERS - 1) / span:.1f} a second on average.")
print(f"No span of time had more than the rate and {lead:.0f} jobs; the burst is {BURST}.")
print("Messages that arrived in each second:", " ".join(str(seconds[second]) for second in range(max(seconds) + 1)))
if lead > BURST + PER_S * 0.002:  # times in answers are cut to milliseconds
    sys.exit("The limit was not held.")
print("The limit was held.")
