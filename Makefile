# Everything that a person starts. `make demo` and `make test` need Python >= 3.11, git and make.
PYTHON ?= python3
OUT ?= demo-out
IMAGES ?=

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint bench wire lock prove-compose release clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

.venv/.installed: requirements.lock pyproject.toml deploy/bootstrap.py
	$(PYTHON) deploy/bootstrap.py

demo: .venv/.installed  ## pictures to a trained token model, into $(OUT); IMAGES=folder for your own
	.venv/bin/seit demo --out "$(OUT)" $(if $(IMAGES),--images "$(IMAGES)")

# Side by side, one thread each; then, one after the other, those that fill the machine themselves.
apart = OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n logical --maxprocesses 8 --dist worksteal

test: .venv/.installed  ## the tests that CI runs
	$(apart) -m "not slow and not system"
	.venv/bin/python -m pytest -m "not slow and system"

test-all: .venv/.installed  ## all tests, the long chaos and scale ones included
	$(apart) -m "not system"
	.venv/bin/python -m pytest -m system

lint: .venv/.installed  ## ruff and mypy
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: .venv/.installed  ## every benchmark in its quick form
	@for file in benchmarks/*.py; do case $$file in */harness.py) ;; *) .venv/bin/python $$file --quick || exit 1;; esac; done

wire: .venv/.installed  ## generate services/wire from proto/
	PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python -m grpc_tools.protoc -Iproto \
	  --python_betterproto2_out=services/wire \
	  --python_betterproto2_opt=pydantic_dataclasses,client_generation=none,server_generation=none \
	  proto/seit/v1/*.proto

lock: .venv/.installed  ## pin the newest versions that pyproject.toml allows
	.venv/bin/pip install -q uv
	.venv/bin/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-annotate --no-emit-index-url --upgrade -o requirements.lock
	.venv/bin/uv pip compile pyproject.toml --extra aws --extra gcs --universal --python-version 3.11 \
	  -c requirements.lock --generate-hashes --no-header --no-annotate --no-emit-index-url \
	  -o deploy/image.lock

prove-compose: .venv/.installed  ## docker-compose.yml run for real; needs docker, or root and dockerd
	.venv/bin/python deploy/proof/run.py

release: .venv/.installed  ## wheel, sdist, list of parts and of licences, into dist/
	rm -rf dist build
	.venv/bin/python -c "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"
	.venv/bin/python deploy/sbom.py dist

clean:  ## remove the environment and caches, not demo-out
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
