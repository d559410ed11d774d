// The C face of torch::inductor::AOTIModelPackageLoader, for src/shim.rs.
//
// Nothing throws across it: every function that can fail returns NULL, or the message of what went wrong, which the caller
// owns and gives back to pw_error_free. Tensors go by `const at::Tensor*`, which is what tch::Tensor::as_ptr gives.
//
// Ownership: inputs are borrowed for the call (the package takes references of its own to their storage); outputs are new
// at::Tensor objects that the caller owns, as tch::Tensor::from_ptr expects them; a package belongs to the caller
// until pw_package_free.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct pw_package;

// What a tensor looks like. `sizes` and `strides` point into the tensor: they are valid as long as it is not resized.
struct pw_tensor {
  const int64_t* sizes;
  const int64_t* strides;
  int64_t n_dimensions;
  // c10::ScalarType, c10::DeviceType, and the device's index (-1: none).
  int32_t dtype;
  int32_t device_type;
  int32_t device_index;
  // Not 0: its memory does not hold its values as they are (sparse, quantised, or lazily conjugated or negated).
  int32_t is_not_plain;
  // Not 0: its first element does not lie at a multiple of 16 bytes.
  int32_t is_misaligned;
};

// Looks at `n` tensors.
char* pw_describe(const void* const* tensors, size_t n, pw_tensor* described);

// Loads the package (a .pt2 file). `device_index`: -1 for a CPU. `n_runners`: how many calls run at once; 1: the
// package does no locking, and the caller has one call run at a time.
char* pw_package_load(const char* path, size_t n_runners, int32_t device_index, pw_package** package);

// One call, on the current stream of the package's device where that is a GPU. `outputs` has room for `n_outputs`, which is how
// many the package must return; they are written only where the call succeeds.
char* pw_package_run(
    pw_package* package, const void* const* inputs, size_t n_inputs, void** outputs, size_t n_outputs);

void pw_package_free(pw_package* package);

// Loads a shared library, whose initialisers register operators.
char* pw_load_library(const char* path);

// Whether an operator, "ns::op" or "ns::op.overload", is registered.
char* pw_has_operator(const char* name, bool* is_there);

// Loads libtorch_cuda from beside libtorch_cpu into the process, and says how many GPUs there are. A libtorch without CUDA has none.
char* pw_load_cuda(int32_t* n_devices);

// Waits until the GPU has done all that was launched on its current stream.
char* pw_synchronise(int32_t device_index);

// The folder that the process's libtorch_cpu.so was loaded from. The caller frees it as an error.
char* pw_library_folder(void);

// "2.11.0": the version of the headers that this was compiled against.
const char* pw_header_version(void);

void pw_error_free(char* message);
}
