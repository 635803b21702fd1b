"""What stands on storage, and what flows: answers over HTTP, for programs and people.

`report` turns one manifest into answers, `catalog` keeps the newest manifests of a root at hand;
`flows` reads what runs say of their streams, `streams` keeps the newest of that at hand; `app`
speaks HTTP, `metrics` Prometheus, and `client` asks. FastAPI is imported in `app` and `problems`.
"""
