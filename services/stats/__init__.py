"""What stands on storage, for programs and people: answers over HTTP, from manifests alone.

`report` turns one manifest into answers, `catalog` keeps the newest manifests of a root at hand,
`app` speaks HTTP, and `client` asks it. FastAPI is imported in `app` alone.
"""
