"""Stubs of CUDA's libraries and the driver, made by gcc; with ``make``'s, MindSpore's GPU back end compiles graphs
without a GPU.

Every function that the back end links answers "success"; memory is the host's, one device of compute capability 8.0 is
there. Graphs are compiled with the true choice of kernels; the first kernel that is launched crashes the process.
"""

import re
import subprocess
from pathlib import Path

from mindspore_coupalign import cuda

LIBRARIES = {  # and what their functions' names begin with
    "libcudart.so.11.0": "cuda|__cuda", "libcublas.so.11": "cublas", "libcudnn.so.8": "cudnn",
    "libcurand.so.10": "curand", "libcusolver.so.11": "cusolver", "libcusparse.so.11": "cusparse",
    "libcufft.so.10": "cufft", "libnvrtc.so.11.2": "nvrtc", "libcuda.so.1": "cu[A-Z]"}
CUDA_HEAD = "typedef unsigned long ul;\n"
# Functions that give something back by a pointer; numbers in cudaGetDeviceProperties are offsets in CUDA 11's structure
SPECIAL = {
    "libcudart.so.11.0": """
int cudaGetDeviceCount(int *n) { *n = 1; return 0; }
int cudaGetDevice(int *n) { *n = 0; return 0; }
int cudaGetDeviceProperties(char *p, int device) {
  memset(p, 0, 720); strcpy(p, "no card");
  *(ul *)(p + 288) = 8ul << 30; *(ul *)(p + 296) = 49152;                      /* memory, of a block */
  *(int *)(p + 304) = 65536; *(int *)(p + 308) = 32; *(int *)(p + 320) = 1024; /* registers, warp, threads */
  *(int *)(p + 324) = *(int *)(p + 328) = 1024; *(int *)(p + 332) = 64;
  *(int *)(p + 336) = 2147483647; *(int *)(p + 340) = *(int *)(p + 344) = 65535;
  *(int *)(p + 360) = 8; *(int *)(p + 388) = 108; *(int *)(p + 608) = 2048;    /* capability, multiprocessors */
  return 0; }
int cudaDeviceGetAttribute(int *v, int which, int device) { *v = which == 75 ? 8 : which == 76 ? 0 : 1024; return 0; }
int cudaMemGetInfo(ul *unused, ul *all) { *unused = 4ul << 30; *all = 8ul << 30; return 0; }
int cudaMalloc(void **p, ul n) { *p = aligned_alloc(512, (n + 511) / 512 * 512); return 0; }
int cudaMallocAsync(void **p, ul n, void *stream) { return cudaMalloc(p, n); }
int cudaMallocHost(void **p, ul n) { *p = malloc(n); return 0; }
int cudaHostAlloc(void **p, ul n, unsigned flags) { *p = malloc(n); return 0; }
int cudaMemcpy(void *to, void *from, ul n, int kind) { memcpy(to, from, n); return 0; }
int cudaMemcpyAsync(void *to, void *from, ul n, int kind, void *stream) { memcpy(to, from, n); return 0; }
int cudaMemset(void *p, int value, ul n) { memset(p, value, n); return 0; }
int cudaMemsetAsync(void *p, int value, ul n, void *stream) { memset(p, value, n); return 0; }
int cudaDriverGetVersion(int *v) { *v = 11080; return 0; }
int cudaRuntimeGetVersion(int *v) { *v = 11060; return 0; }
int cudaDeviceGetStreamPriorityRange(int *least, int *most) { *least = *most = 0; return 0; }
int cudaDeviceCanAccessPeer(int *can, int a, int b) { *can = 0; return 0; }
const char *cudaGetErrorString(int error) { return "no card"; }
const char *cudaGetErrorName(int error) { return "no card"; }
""",
    "libcudnn.so.8": "\n".join(f"""
int cudnnGetConvolution{name}Algorithm_v7(void *h, void *a, void *b, void *c, void *d, int n, int *found, void *perf) {{
  *found = 1; memset(perf, 0, 48); return 0; }}""" for name in ("Forward", "BackwardData", "BackwardFilter")) + """
const char *cudnnGetErrorString(int error) { return "no card"; }
ul cudnnGetVersion(void) { return 8906; }
""",
    "libcuda.so.1": """
int cuInit(unsigned flags) { return 3; } /* what has a CUDA runtime of its own is not to get far */
int cuDriverGetVersion(int *v) { *v = 10000; return 0; }
int cuDeviceGetCount(int *n) { *n = 1; return 0; }
int cuDeviceGetName(char *name, int n, int device) { strncpy(name, "no card", n); return 0; }
int cuDeviceGetAttribute(int *v, int which, int device) { *v = which == 75 ? 8 : which == 76 ? 0 : 1024; return 0; }
""",
}


CALLED_BY_MINDSPORE = ("cuGetErrorName", "cuLaunchKernel", "cuModuleGetFunction", "cuModuleLoadDataEx",
                       "cuModuleUnload", "cuStreamSynchronize")


def library(path: Path, source: str = "int nothing;", needs: Path | None = None):
    path.parent.mkdir(parents=True, exist_ok=True)
    linked = ["-Wl,--no-as-needed", needs] if needs else []
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-x", "none", *linked, "-o", path,
                    f"-Wl,-soname,{path.name}"], input=source, text=True, check=True)


def stub_driver(folder: Path, version: int = 12040, cards: int = 1, init: int = 0, capability=(8, 0)) -> Path:
    """A libcuda.so.1 that answers so and computes nothing."""
    rest = "".join(f"int {name}(void) {{ return 1; }}\n" for name in CALLED_BY_MINDSPORE)
    library(folder / cuda.DRIVER, f"""
        #include <string.h>
        int cuInit(unsigned flags) {{ return {init}; }}
        int cuDriverGetVersion(int *v) {{ *v = {version}; return 0; }}
        int cuDeviceGetCount(int *n) {{ *n = {cards}; return 0; }}
        int cuDeviceGetName(char *name, int n, int card) {{ strncpy(name, "a card", n); return 0; }}
        int cuDeviceGetAttribute(int *v, int which, int card) {{
            *v = which == 75 ? {capability[0]} : which == 76 ? {capability[1]} : 0; return 0; }}
        {rest}""")
    return folder


def with_nvcc(home: Path, release: str) -> str:
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "nvcc").write_text(f'#!/bin/sh\necho "Cuda compilation tools, release {release}, V{release}.1"\n')
    (home / "bin" / "nvcc").chmod(0o755)
    return str(home)


def make(folder: Path, mindspore: Path) -> dict:
    """The environment in which the MindSpore that is installed in ``mindspore`` takes its GPU back end."""
    plugins = mindspore / "lib" / "plugin"
    wanted = _wanted([plugins / "libmindspore_gpu.so.11.6", plugins / "gpu" / "libcuda_ops.so.11"])
    home = Path(with_nvcc(folder / "cuda", "11.6"))
    (home / "lib64").mkdir()
    for library, prefix in LIBRARIES.items():
        special = CUDA_HEAD + SPECIAL.get(library, "")
        own = set(re.findall(r"^(?:int|ul|const char) \*?(\w+)\(", special, re.MULTILINE))
        names = {name for name, version in wanted if re.match(prefix, name) and version in ("", library)} - own
        source = "#include <stdlib.h>\n#include <string.h>\nstatic char some[65536];\n" + special
        for name in sorted(names):
            handle = ("void **p", "*p = some; ") if "Create" in name else ("void", "")  # one that is not null
            source += f"int {name}({handle[0]}) {{ {handle[1]}return 0; }}\n"
        versions = folder / f"{library}.map"
        versions.write_text(f"{library} {{ global: *; }};\n")
        named = [f"-Wl,--version-script={versions}"] if any(version == library for _, version in wanted) else []
        subprocess.run(["gcc", "-w", "-shared", "-fPIC", "-x", "c", "-", "-o", home / "lib64" / library,
                        f"-Wl,-soname,{library}", *named], input=source, text=True, check=True)
    (home / "lib64" / "libcudart.so.11.6.55").symlink_to(home / "lib64" / "libcudart.so.11.0")
    return {"CUDA_HOME": str(home), "LD_LIBRARY_PATH": str(home / "lib64")}


def _wanted(users: list) -> set:
    """(name, library or "") of the symbols that libraries do not define themselves."""
    found = set()
    for path in users:
        done = subprocess.run(["readelf", "--dyn-syms", "-W", path], capture_output=True, text=True, check=True)
        for symbol in re.findall(r"UND\s+(\S+)", done.stdout):
            name, _, version = symbol.partition("@")
            found.add((name, version.lstrip("@")))
    return found
