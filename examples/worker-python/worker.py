#!/usr/bin/env python3
"""A Ringback worker in Python, with the standard library alone. `export RINGBACK_API_KEY=rbk_…; python3 worker.py`"""
import json, os, threading, time, traceback, urllib.error, urllib.request

URL, KEY = os.environ.get("RINGBACK_URL", "http://127.0.0.1:8080"), os.environ["RINGBACK_API_KEY"]
KINDS, LEASE_S = ["wordcount"], 6


def work(job):
    """Your work: the result, or an exception. Long work looks at `stop` now and then."""
    until = time.monotonic() + job["input"].get("sleep_s", 0)
    while time.monotonic() < until and not stop.is_set():
        time.sleep(0.05)
    return {"words": len(job["input"].get("text", "").split())}


def call(path, body, timeout=30):
    """Repeats until there is an answer: reports and extensions may be repeated, and a poll that was lost costs one lease."""
    for wait in (0.2, 1, 2, *[5] * 1000):
        try:
            headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
            request = urllib.request.Request(URL + path, json.dumps(body).encode(), headers)
            return json.load(urllib.request.urlopen(request, timeout=timeout))
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise SystemExit(error.read().decode())
        except OSError:
            pass
        time.sleep(wait)


def keep(lease, ended):
    """Extends the lease while the work goes on; says stop when the lease is lost or the job cancelled."""
    while not ended.wait(LEASE_S / 3):
        answer = call("/v1/leases/extend", {"leases": [lease], "lease_s": LEASE_S})["leases"][0]
        if answer["status"] != 200 or answer["cancelled"]:
            return stop.set()


while True:
    for lent in call("/v1/leases", {"worker": "python", "kinds": KINDS, "max": 1, "lease_s": LEASE_S, "wait_s": 20})["leases"]:
        ended, stop = threading.Event(), threading.Event()
        threading.Thread(target=keep, args=(lent["lease"], ended), daemon=True).start()
        try:
            report = {"outcome": "succeeded", "result": work(lent["job"])}
        except Exception as error:
            report = {"outcome": "failed", "error": {"message": str(error), "class": type(error).__name__, "traceback": traceback.format_exc()}}
        call("/v1/leases/report", {"reports": [{"lease": lent["lease"], **report}]})
        ended.set()
