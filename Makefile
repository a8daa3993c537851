# make demo      train a small KAN-ViT on drawn flowers and predict one of them
# make test      every test that a commit must pass, with the linter
# make test-all  the long tests as well
# make test-page     the page of serve.py in a Chromium that is here, or CHROMIUM=/path/to/it
# make test-lowest   the tests with the oldest versions that the requirements allow
# Each makes the environment in .venv first and skips what is done. Tests run in as many processes as
# there are cores, each with one thread: two threads of torch wait for each other in every layer.

PYTHON ?= python3
BIN := .venv/bin
PY := $(BIN)/python
DEMO := weights/demo
TEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n auto

.PHONY: help demo test test-all test-page test-lowest lint clean

help:
	@sed -n '1,/^$$/s/^# //p' Makefile

.venv/installed: requirements.txt
	@echo "Making the environment in .venv (a few minutes, a few GB, once) ..."
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# pykan, with which the longest tests compare, names none of the packages that it needs.
.venv/installed-all: .venv/installed-dev
	$(PY) -m pip install --quiet --disable-pip-version-check "pykan>=0.2.8" pandas scikit-learn
	touch $@

demo: .venv/installed
	@if test -f $(DEMO)/report.html; then echo "$(DEMO) is trained already"; \
	elif test -f $(DEMO)/last.pth; then $(PY) train.py --resume $(DEMO); \
	else $(PY) train.py --data-path sample --model vit_micro_patch8_64 --mlp kan --kan-rank 16 \
	    --lr 1e-3 --epochs 18 --output $(DEMO); fi
	@echo
	@echo "Predicting one flower:"
	$(PY) predict.py sample_flowers/tulips/tulips_0001.jpg --weights $(DEMO)/best.pth
	@echo
	@echo "The run is in $(DEMO)/ (open report.html), the drawn flowers are in sample_flowers/."
	@echo "Your own photos, a folder per class:"
	@echo "  . .venv/bin/activate"
	@echo "  python train.py --data-path YOUR_PHOTOS --weights FILE_OR_MODEL_NAME"
	@echo "  python predict.py SOME_PHOTO.jpg"

lint: .venv/installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

test: lint
	$(TEST)

test-all: lint .venv/installed-all
	$(TEST) -m ""

# In one process: the browser has threads of its own. -rs names what was skipped, and why.
test-page: .venv/installed-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -m page -rs tests/serving || \
	OMP_NUM_THREADS=1 $(PY) -m pytest -m page -rs --last-failed tests/serving  # a cold start is slow

# The oldest versions that the requirements allow, in an environment of its own (some GB).
test-lowest:
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check \
	    $$(sed -n 's/^\([a-z-]*\)>=\([0-9.]*\)\( .*\)*$$/\1==\2/p' requirements.txt requirements-dev.txt)
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n auto

clean:
	rm -rf .venv .venv-lowest sample_flowers $(DEMO)
