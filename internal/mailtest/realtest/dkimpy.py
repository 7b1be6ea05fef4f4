# What a test asks of dkimpy, one JSON document in and one out: see dkimpy.go.
import base64
import hashlib
import json
import sys

import dkim
from dkim.canonicalization import Relaxed, Simple

work = json.load(sys.stdin)


def txt(name, timeout=5):
    if isinstance(name, bytes):
        name = name.decode()
    value = work["dns"].get(name.rstrip("."))
    return value.encode() if value is not None else None


def sign(job, msg):
    lines = dkim.arc_sign(msg, job["selector"].encode(), job["domain"].encode(), job["key"].encode(), job["authserv"].encode())
    return {"lines": base64.b64encode(b"".join(lines)).decode()}


def verify(job, msg):
    cv, results, reason = dkim.arc_verify(msg, dnsfunc=txt)
    sets = {r["instance"]: {"ams": bool(r.get("ams-valid")), "seal": bool(r.get("as-valid"))} for r in results}
    return {"status": cv.decode() if cv else "", "reason": reason, "sets": sets}


# The newest set of a message that has no other: what the seal of a chain that failed covers.
def alone(job, msg):
    a = dkim.ARC(msg)
    n, headers = a.sorted_arc_headers()
    got = a.verify_instance(headers, n, dnsfunc=txt)
    return {"status": got["cv"].decode(), "sets": {n: {"ams": bool(got["ams-valid"]), "seal": bool(got["as-valid"])}}}


def body(job, msg):
    form = {"simple": Simple, "relaxed": Relaxed}[job["form"]]
    return {"lines": base64.b64encode(hashlib.sha256(form.canonicalize_body(msg)).digest()).decode()}


def dkimverify(job, msg):
    return {"status": "pass" if dkim.verify(msg, dnsfunc=txt) else "fail"}


ops = {"sign": sign, "verify": verify, "alone": alone, "body": body, "dkim": dkimverify}
answers = []
for job in work["jobs"]:
    try:
        answers.append(ops[job["op"]](job, base64.b64decode(job["message"])))
    except Exception as e:  # what it says of a message is an answer too
        answers.append({"status": "error", "reason": "%s: %s" % (type(e).__name__, e)})
json.dump(answers, sys.stdout)
