// The module mmn_fast._C: facts about this build, and the ops.
#include <string>

#include "python/bind.h"

namespace py = pybind11;

namespace {

// The facts come from CMakeLists.txt.
py::dict build_info() {
  py::dict info;
  info["version"] = MMN_FAST_VERSION;
  info["compiler"] = MMN_FAST_COMPILER;
  info["build_type"] = MMN_FAST_BUILD_TYPE;
#if defined(MMN_FAST_CUDA_ARCHS)
  info["cuda"] = true;
  info["cuda_version"] = MMN_FAST_CUDA_VERSION;
  info["cuda_archs"] = py::str(MMN_FAST_CUDA_ARCHS).attr("split")(",");
#else
  info["cuda"] = false;
  info["cuda_version"] = py::none();
  info["cuda_archs"] = py::list();
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of mmn_fast. Call them through mmn_fast.kernels.cpu.ops.";
  m.def("build_info", &build_info, "Version, compiler, build type and CUDA architectures of this build.");
  mmn_fast::register_cpu_ops(m);
  mmn_fast::register_search(m);
  mmn_fast::register_video_encoder(m);
  mmn_fast::register_text_encoder(m);
  mmn_fast::register_gpu_ops(m);
}
