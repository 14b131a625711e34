# The commands of the project. Everything lives in .venv; `make demo` and `make test` set it up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-all lint types size native fuzz fuzz-native kills soak audit wheel docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -U pip
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@

# TASK=detection for boxes instead of masks.
TASK ?= segmentation
demo: setup
	$(BIN)/quantrim demo --task $(TASK) --save-dir output/demo

# Two workers of one thread each: on two cores faster than one of two.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-all: setup
	$(BIN)/python -m pytest -m 'slow or not slow' --timeout 3600

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

size:
	@find quantrim -name '*.py' | xargs wc -l | sort -n | tail -n 16

native: setup
	cmake -S cpp -B build/native -DCMAKE_BUILD_TYPE=Release -DPython3_EXECUTABLE=$(abspath $(BIN)/python)
	cmake --build build/native -j 2

# Damaged models, images, arrays, states, configurations and requests; FUZZ="--models 20000 --seed 7" for more.
fuzz: setup
	$(BIN)/python -m tests.fuzz.campaign $(FUZZ)

# Long verbs killed, stopped and out of disk at random places; KILLS="--kills 500 --seed 7" for more.
kills: setup
	$(BIN)/python -m tests.fuzz.kills $(KILLS)
	$(BIN)/python -m tests.fuzz.stops

# Half an hour of good and bad requests; SOAK="--minutes 480".
soak: setup
	$(BIN)/python -m tests.fuzz.soak $(SOAK)

# What the native runner reads, under ASan and UBSan: its own readers, then damaged models through both engines.
SANITIZE := -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all
fuzz-native: setup
	cmake -S cpp -B build/sanitized -DPython3_EXECUTABLE=$(abspath $(BIN)/python) \
		-DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS='$(SANITIZE)'
	cmake --build build/sanitized -j 2
	$(BIN)/python -m tests.native.fuzz --models 200 --runner build/sanitized/quantrim_bench $(FUZZ)

# Known vulnerabilities of the installed dependencies, and their list as CycloneDX.
audit: setup
	$(BIN)/python -m pip install -q 'pip-audit>=2.7,<3' 'cyclonedx-bom>=5,<8'
	mkdir -p output
	$(BIN)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --of JSON -o output/sbom.cdx.json
	$(BIN)/python -m tests.audit

# The wheel, dated by the last commit: the same sources give the same bytes.
wheel: setup
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m pip wheel -q --no-deps -w output/wheels .
	cd output/wheels && sha256sum *.whl

docs: setup
	$(BIN)/python -m pip install -q -e '.[docs]'
	$(BIN)/mkdocs build

clean:
	rm -rf build output .pytest_cache .mypy_cache .ruff_cache
