# nibble: `make demo` and `make test` do all the set-up themselves.
#
#   make            build/libnibble.so and build/nibble
#   make demo       set up, then carry a small model from float to 4 bits and prove it
#   make demo-sweep set up, then many recipes on two small models, and their report
#   make demo-slurm the same as a job array of a Slurm that is started here for it, and a conversion in parts
#   make test       set up, then the specs        (make asan test: under ASan+UBSan; JIT=off: interpreted)
#   make test-all   the same and the specs with real programs around nibble: Slurm, a browser, terminals (spec/all)
#   make lint       formatting, unused names, and which layer may use which
#   make coverage-systems    which spec shows which requirement of the systems (BREAK=1: break the code, see them fail;
#                           BREAK=MRL-4 the numbers that match, a Lua pattern)
#   make docs       writes what README.md and recipes/README.md take from the code
#   make cuda-check compiles each CUDA kernel for each GPU, where nvcc is found: nothing may spill
#   make bench      speeds here, as a share of this machine's own limits
#   make install PREFIX=/usr/local
#
# DEBUG=1 builds without optimization; BUILD=dir builds elsewhere.

BUILD   ?= build
PREFIX  ?= /usr/local
CC      := gcc
SAN     :=

ifneq ($(filter asan,$(MAKECMDGOALS)),)
BUILD   := build/asan
SAN     := -fsanitize=address,undefined -fno-omit-frame-pointer
endif

OPT     := $(if $(DEBUG),-O0,-O2) -g
# No contraction of a*b+c: a result must not depend on the instruction set (DESIGN 1.5).
CFLAGS  := -std=gnu17 $(OPT) -fPIC -fvisibility=hidden -fopenmp -ffp-contract=off -fno-math-errno \
           -Wall -Wextra -Wshadow -Wconversion -Wno-psabi $(SAN) -Icore -I/usr/include/luajit-2.1 -D_GNU_SOURCE $(EXTRA_CFLAGS)
LDLIBS  := -lopenblas -lcjson -lpcre2-8 -lutf8proc -lxxhash -lz -lm -ldl -lpthread
LDFLAGS := -fopenmp $(SAN) -Wl,--as-needed

# The executable carries OpenMP in itself: core/main.c says why.
LIBGOMP := $(shell $(CC) -print-file-name=libgomp.a)

CORE    := $(filter-out core/main.c,$(wildcard core/*.c core/*/*.c)) $(wildcard cuda/*.c)
KERNELS := $(wildcard cuda/kernels/*.cu)
IMAGES  := $(KERNELS:cuda/%.cu=$(BUILD)/obj/gen/%.o)
OBJ     := $(CORE:%.c=$(BUILD)/obj/%.o) $(BUILD)/obj/gen/cdef.o $(IMAGES)
# NVCC= builds without kernels, as where there is no nvcc.
NVCC    ?= $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
LUA     := $(sort $(shell find lua/nibble -name '*.lua'))
RECIPES := $(sort $(wildcard recipes/*.lua))

.PHONY: default always all cuda-check setup asan demo demo-sweep demo-slurm test test-all lint docs bench coverage-systems install clean
# Builds with all cores, unless -j says otherwise.
BUILT = $(MAKE) --no-print-directory $(if $(findstring -j,$(MAKEFLAGS)),,-j$(shell nproc))

# Where there is no GPU, specs and demos do without its kernels, which take nvcc minutes, unless `make` built them before.
GPU   = $(wildcard /dev/nvidiactl /dev/dxg) $(filter command%,$(origin NVCC)) $(shell cat $(BUILD)/gen/nvcc 2>/dev/null)
BRIEF = $(BUILT) $(if $(strip $(GPU)),,NVCC=)

default:
	@$(BUILT) all
all: $(BUILD)/libnibble.so $(BUILD)/nibble

setup:
	@scripts/bootstrap

asan: ;

# Files for one instruction set say so by name: x_avx2.c, x_avx512.c, x_amx.c.
ISA_avx2   := -mavx2 -mfma -mf16c -mbmi2
ISA_avx512 := $(ISA_avx2) -mavx512f -mavx512bw -mavx512vl -mavx512dq
ISA_vnni   := $(ISA_avx512) -mavx512vnni -mavx512vbmi
ISA_bf16   := $(ISA_avx512) -mavx512bf16
ISA_amx    := $(ISA_bf16) -mamx-tile -mamx-int8 -mamx-bf16
isa_of      = $(ISA_$(lastword $(subst _, ,$(basename $(notdir $(1))))))

$(BUILD)/obj/%.o: %.c core/nibble.h core/base.h
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(call isa_of,$<) -MMD -MP -c $< -o $@

$(BUILD)/obj/gen/%.o: $(BUILD)/gen/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -c $< -o $@

# The CUDA kernels; made anew where nvcc comes or goes.
$(BUILD)/gen/nvcc: always
	@mkdir -p $(@D)
	@echo "$(NVCC)" | cmp -s - $@ || echo "$(NVCC)" > $@

$(BUILD)/gen/kernels/%.S: cuda/kernels/%.cu scripts/fatbin scripts/kernel-names $(BUILD)/gen/nvcc
	@mkdir -p $(@D)
	NVCC="$(NVCC)" scripts/fatbin $@ $<

$(IMAGES): $(BUILD)/obj/gen/%.o: $(BUILD)/gen/%.S
	@mkdir -p $(@D)
	$(CC) -c $< -o $@

$(BUILD)/gen/cdef.c: core/nibble.h cuda/nibble_cuda.h scripts/embed.lua
	@mkdir -p $(@D)
	luajit scripts/embed.lua cdef $(filter %.h,$^) > $@.tmp && mv $@.tmp $@

$(BUILD)/gen/lua.c: $(LUA) $(RECIPES) scripts/embed.lua
	@mkdir -p $(@D)
	luajit scripts/embed.lua lua $(LUA) $(RECIPES) > $@.tmp && mv $@.tmp $@

# nodelete: Lua unloads what it loaded when it ends, while OpenMP's threads still run in it.
$(BUILD)/libnibble.so: $(OBJ)
	$(CC) -shared -o $@ $^ $(LDFLAGS) -Wl,-z,nodelete $(LDLIBS)

$(BUILD)/nibble: $(OBJ) $(BUILD)/obj/core/main.o $(BUILD)/obj/gen/lua.o
	$(CC) -Wl,--export-dynamic-symbol='nb_*' -o $@ $^ $(filter-out -fopenmp,$(LDFLAGS)) -lluajit-5.1 $(LIBGOMP) $(LDLIBS)

# The stand-in for NVIDIA's driver, which runs the kernels on the processor (cuda/emu/driver.cpp). It checks each
# access to device memory itself; ASan takes the fibers that are its threads for a broken stack.
EMUOPT   ?= -O2 -g
EMUFLAGS := -std=c++17 $(EMUOPT) -fPIC -ffp-contract=off -Wall -Wextra -Wshadow -Wno-unknown-pragmas -I. -Icuda -Icuda/emu
EMU_OBJ  := $(patsubst cuda/%.cpp,$(BUILD)/%.o,$(wildcard cuda/emu/*.cpp)) \
            $(patsubst cuda/%.cu,$(BUILD)/emu/%.o,$(KERNELS) $(wildcard cuda/emu/*.cu))

$(BUILD)/emu/%.o: cuda/emu/%.cpp
	@mkdir -p $(@D)
	g++ $(EMUFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/emu/%.o: cuda/%.cu scripts/emu-unit scripts/kernel-names
	@mkdir -p $(@D)
	scripts/emu-unit $(@:.o=.cpp) $<
	g++ $(EMUFLAGS) -MMD -MP -c $(@:.o=.cpp) -o $@

# A kernel is its own also where nibble has a function of the same name.
$(BUILD)/libcuemu.so: $(EMU_OBJ)
	g++ -shared -Wl,-Bsymbolic -o $@ $^

cuda-check:
	@scripts/cuda-check

-include $(OBJ:.o=.d) $(BUILD)/obj/core/main.d $(EMU_OBJ:.o=.d) $(KERNELS:cuda/%.cu=$(BUILD)/gen/%.d)

# ASan must come first into the luajit that loads the library.
RUN := NIBBLE_BUILD=$(abspath $(BUILD)) $(if $(filter off,$(JIT)),NIBBLE_JIT=off) $(if $(SAN),LD_PRELOAD="$(shell $(CC) -print-file-name=libasan.so) $(shell $(CC) -print-file-name=libubsan.so)" \
       ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1)

test: setup
	@$(BRIEF) $(if $(SAN),asan) all $(BUILD)/libcuemu.so
	@$(RUN) scripts/test $(SPEC)

test-all:
	@scripts/bootstrap all
	@$(BRIEF) $(if $(SAN),asan) all $(BUILD)/libcuemu.so
	@$(RUN) scripts/test --run=all $(SPEC)

demo: setup
	@$(BRIEF) all
	@scripts/demo $(BUILD)

demo-sweep: setup
	@$(BRIEF) all
	@scripts/demo-sweep $(BUILD)

demo-slurm:
	@scripts/bootstrap all
	@$(BRIEF) all
	@scripts/demo-slurm $(BUILD)

lint: setup
	@scripts/lint

# Which spec shows which requirement; BREAK=1 breaks the code and asks that they notice.
coverage-systems: setup
	@$(if $(BREAK),$(BRIEF) all >/dev/null)
	@NIBBLE_BUILD=$(abspath $(BUILD)) luajit scripts/coverage-systems.lua \
	  $(if $(BREAK),--break $(if $(filter-out 1,$(BREAK)),'$(BREAK)'))

docs: setup
	@$(BRIEF) all
	@$(BUILD)/nibble scripts/docs.lua

bench: setup
	@$(BRIEF) all
	@scripts/bench $(BUILD)

install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib $(DESTDIR)$(PREFIX)/include \
	  $(DESTDIR)$(PREFIX)/share/lua/5.1 $(DESTDIR)$(PREFIX)/share/nibble
	install -m 755 $(BUILD)/nibble $(DESTDIR)$(PREFIX)/bin/nibble
	install -m 755 $(BUILD)/libnibble.so $(DESTDIR)$(PREFIX)/lib/libnibble.so
	install -m 644 core/nibble.h cuda/nibble_cuda.h $(DESTDIR)$(PREFIX)/include/
	cp -R lua/nibble $(DESTDIR)$(PREFIX)/share/lua/5.1/
	cp -R recipes $(DESTDIR)$(PREFIX)/share/nibble/
	install -d $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/bash-completion/completions \
	  $(DESTDIR)$(PREFIX)/share/zsh/site-functions
	$(BUILD)/nibble -e 'io.write(require("nibble.cli.manual").man())' > $(DESTDIR)$(PREFIX)/share/man/man1/nibble.1
	$(BUILD)/nibble completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/nibble
	$(BUILD)/nibble completion zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_nibble

clean:
	rm -rf build
