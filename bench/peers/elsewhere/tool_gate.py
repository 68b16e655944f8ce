"""A gate for firstpass: are the calls of a candidate ones that the request's tools allow?

firstpass starts it for each answer, with {"candidate": text, "request": {"messages" ...}} on standard input. The
candidate is a JSON list of calls; the first message holds {"tools": [...]}. No call leaves nothing to check: abstain.
"""

from __future__ import annotations

import json
import sys

import jsonschema_rs


def main() -> None:
    given = json.load(sys.stdin)
    calls = json.loads(given["candidate"])
    opening = given["request"].get("system") or given["request"]["messages"][0]["content"]
    functions = [tool["function"] for tool in json.loads(opening)["tools"]]
    schemas = {function["name"]: function.get("parameters", {}) for function in functions}
    valid = all(
        call["name"] in schemas and jsonschema_rs.is_valid(schemas[call["name"]], call["arguments"]) for call in calls
    )
    verdict = {"verdict": "pass" if valid else "fail", "score": float(valid)} if calls else {"verdict": "abstain"}
    print(json.dumps(verdict))


if __name__ == "__main__":
    main()
