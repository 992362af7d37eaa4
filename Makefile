# Front door only: everything is built by CMakeLists.txt. `make` builds ./infer, `make demo` shows it, `make test` proves it.
# Options: DEBUG=1, ASAN=1 (AddressSanitizer + UBSan), UNITY=1 (files compiled in groups: half the time when all is new),
# JOBS=N, BUILD=folder, CCACHE_DISABLE=1 (ccache is taken where it is). They count when a build folder is new.
# CUDA comes in when nvcc is on the machine; CUDA=0 leaves it out. It is compiled for the GPUs in this machine, and for
# 90a (H100, H200) where there is none; CUDA_ARCHS="80;90a" says otherwise, and RELEASE=1 takes every architecture.
MAKEFLAGS += --no-print-directory
JOBS ?= $(shell nproc)
ifeq ($(ASAN),1)
BUILD ?= build/asan
CONFIG += -DINFER_SANITIZE=ON
else ifeq ($(DEBUG),1)
BUILD ?= build/debug
CONFIG += -DCMAKE_BUILD_TYPE=Debug
else
BUILD ?= build/release
endif
ifeq ($(RELEASE),1)
CUDA_ARCHS ?= 80;86;89;90a;120a
endif
GPU_ARCHS = nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -E '^[0-9]+\.[0-9]$$' | sort -u | \
  sed 's/\.//; s/^\(9\|1.\).$$/&a/' | paste -sd ';'
ifndef CUDA_ARCHS
CUDA_ARCHS := $(or $(shell $(GPU_ARCHS)),90a)
endif
CONFIG += $(if $(filter 1,$(UNITY)),-DINFER_UNITY=ON) $(if $(CUDA),-DINFER_CUDA=$(CUDA)) $(if $(CUDA_ARCHS),"-DINFER_CUDA_ARCHS=$(CUDA_ARCHS)")
CONFIG += $(if $(shell command -v ninja),-G Ninja) $(if $(CCACHE_DISABLE),,$(if $(shell command -v ccache),-DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache))

# What Debian 12 needs beyond a shell; `make deps` installs what is missing and nothing else.
PACKAGES = g++ cmake ninja-build pkg-config libfmt-dev nlohmann-json3-dev libpcre2-dev libutf8proc-dev libxxhash-dev libedit-dev \
  libbsd-dev libncurses-dev catch2 python3-pip ca-certificates xz-utils

.PHONY: all infer everything test demo deps bench format clean install configure
all: infer

# The build folder is configured once; CMake reconfigures itself when files come or go.
$(BUILD)/CMakeCache.txt: | deps
	@cmake -S . -B $(BUILD) $(CONFIG) >$(BUILD).log 2>&1 || { mkdir -p $(BUILD); cat $(BUILD).log; rm -f $(BUILD)/CMakeCache.txt; exit 1; }

infer: $(BUILD)/CMakeCache.txt
	@cmake --build $(BUILD) -j$(JOBS) --target infer
	@ln -sf $(BUILD)/infer infer

# The program and all tests, not run.
everything: $(BUILD)/CMakeCache.txt
	@cmake --build $(BUILD) -j$(JOBS)

test: everything
	$(if $(ASAN)$(DEBUG),,@ln -sf $(BUILD)/infer infer)
	@cd $(BUILD) && ctest --output-on-failure -j$(JOBS) $(TESTS)

demo: infer
	@models/fetch smollm2
	./infer models/SmolLM2-135M-Instruct.Q4_1.gguf -st -p "What is the capital of France? Answer in one sentence." --temp 0 -n 64

bench: infer
	@models/fetch smollm2
	./infer bench -m models/SmolLM2-135M-Instruct.Q4_1.gguf --bw

deps:
	@mkdir -p build
	@tools/install_packages $(PACKAGES)

format:
	@git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format -i

install: infer
	@cmake --build $(BUILD) -j$(JOBS)
	@cmake --install $(BUILD) $(if $(PREFIX),--prefix $(PREFIX))

clean:
	@rm -rf build infer
