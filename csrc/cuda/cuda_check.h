// Every CUDA call is checked; the error is a sentence.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace mmn_fast {

inline void cuda_check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": CUDA says " + cudaGetErrorName(status) + ": " +
                           cudaGetErrorString(status));
}

// The runtime is linked statically, so its current device is not torch's: each launch selects its own.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    cuda_check(cudaGetDevice(&previous_), "cudaGetDevice");
    cuda_check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceGuard() { static_cast<void>(cudaSetDevice(previous_)); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
};

}  // namespace mmn_fast
