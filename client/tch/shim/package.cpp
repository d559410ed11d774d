#include "package.h"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/SmallVector.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/utils.h>
#include <torch/version.h>

struct pw_package {
  torch::inductor::AOTIModelPackageLoader loader;
  c10::DeviceIndex device_index;
};

namespace {

using torch::inductor::AOTIModelContainerRunner;

// What libtorch's runner keeps to itself. Its own way makes vectors and a map of what goes in and out, and each output anew: some ten
// allocations, which a call of small kernels notices. Here inputs and outputs are what the model takes and gives.
struct Runner : AOTIModelContainerRunner {
  static size_t n_outputs(AOTIModelContainerRunner& runner) {
    size_t n = 0;
    check((runner.*(&Runner::get_num_outputs_func_))(runner.*(&Runner::container_handle_), &n));
    return n;
  }

  // Takes what `inputs` point to. `outputs` has room for n_outputs().
  static void run(
      AOTIModelContainerRunner& runner, AtenTensorHandle* inputs, size_t n_inputs, AtenTensorHandle* outputs, size_t n_outputs) {
    const auto call = runner.*(&Runner::run_func_);
    check(call(
        runner.*(&Runner::container_handle_),
        inputs,
        n_inputs,
        outputs,
        n_outputs,
        nullptr,
        runner.*(&Runner::proxy_executor_handle_)));
  }

  static void check(AOTIRuntimeError status) {
    if (status != AOTI_RUNTIME_SUCCESS) {
      throw std::runtime_error("the compiled code failed; what it says of that is on the standard error stream");
    }
  }
};

char* copied(const std::string& text) {
  char* copy = static_cast<char*>(std::malloc(text.size() + 1));
  if (copy != nullptr) {
    std::memcpy(copy, text.c_str(), text.size() + 1);
  }
  return copy;
}

// Runs `body`; what it throws becomes the message that is returned.
template <typename Body>
char* guarded(Body body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const c10::Error& error) {
    return copied(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return copied(error.what());
  } catch (...) {
    return copied("an exception of unknown type");
  }
}

const at::Tensor& tensor(const void* pointer) {
  return *static_cast<const at::Tensor*>(pointer);
}

void load_globally(const std::string& path) {
  if (dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    throw std::runtime_error(dlerror());
  }
}

std::string library_folder() {
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&aoti_torch_device_type_cpu), &info) == 0 || info.dli_fname == nullptr) {
    throw std::runtime_error("the dynamic linker does not say where libtorch_cpu.so was loaded from");
  }
  const std::string path = info.dli_fname;
  const auto end = path.rfind('/');
  return end == std::string::npos ? "." : path.substr(0, end);
}

// Packages name libtorch.so among what they need. The process may have none of that name loaded (it is an empty library, which linkers leave
// out), and no search path for it: loaded by its path here, the dynamic linker finds it by its name.
void preload_libtorch() {
  static std::once_flag once;
  std::call_once(once, [] { load_globally(library_folder() + "/libtorch.so"); });
}

void check_number(size_t returned, size_t expected) {
  if (returned != expected) {
    throw std::runtime_error(
        "the package returned " + std::to_string(returned) + " tensors, and its manifest says " + std::to_string(expected));
  }
}

void run_on_cpu(
    AOTIModelContainerRunner& runner, const void* const* inputs, size_t n_inputs, void** outputs, size_t n_outputs) {
  check_number(Runner::n_outputs(runner), n_outputs);
  c10::SmallVector<AtenTensorHandle, 16> taken;
  for (size_t i = 0; i < n_inputs; ++i) {
    taken.push_back(torch::aot_inductor::tensor_pointer_to_tensor_handle(new at::Tensor(tensor(inputs[i]))));
  }
  c10::SmallVector<AtenTensorHandle, 16> given(n_outputs, nullptr);
  Runner::run(runner, taken.data(), n_inputs, given.data(), n_outputs);
  for (size_t i = 0; i < n_outputs; ++i) {
    at::Tensor* one = torch::aot_inductor::tensor_handle_to_tensor_pointer(given[i]);
    // A value that is returned twice is one tensor, and each output its caller's to free.
    for (size_t before = 0; before < i; ++before) {
      if (given[before] == given[i]) {
        one = new at::Tensor(*one);
        break;
      }
    }
    outputs[i] = one;
  }
}

void run_on_gpu(pw_package& package, const void* const* inputs, size_t n_inputs, void** outputs, size_t n_outputs) {
  std::vector<at::Tensor> arguments;
  arguments.reserve(n_inputs);
  for (size_t i = 0; i < n_inputs; ++i) {
    arguments.push_back(tensor(inputs[i]));
  }
  c10::OptionalDeviceGuard guard(c10::Device(c10::kCUDA, package.device_index));
  // Without a stream's handle the runner takes the current stream of the current device.
  std::vector<at::Tensor> returned = package.loader.boxed_run(std::move(arguments), nullptr);
  check_number(returned.size(), n_outputs);
  std::vector<std::unique_ptr<at::Tensor>> owned;
  owned.reserve(n_outputs);
  for (at::Tensor& one : returned) {
    owned.push_back(std::make_unique<at::Tensor>(std::move(one)));
  }
  for (size_t i = 0; i < n_outputs; ++i) {
    outputs[i] = owned[i].release();
  }
}

} // namespace

extern "C" {

char* pw_describe(const void* const* tensors, size_t n, pw_tensor* described) {
  return guarded([&] {
    for (size_t i = 0; i < n; ++i) {
      const at::Tensor& one = tensor(tensors[i]);
      pw_tensor& to = described[i];
      to = pw_tensor{nullptr, nullptr, 0, -1, -1, -1, 1, 0};
      if (!one.defined()) {
        continue;
      }
      to.dtype = static_cast<int32_t>(one.scalar_type());
      to.device_type = static_cast<int32_t>(one.device().type());
      to.device_index = one.device().index();
      if (one.layout() != c10::kStrided || one.is_quantized() || one.is_conj() || one.is_neg()) {
        continue;
      }
      to.is_not_plain = 0;
      to.is_misaligned = reinterpret_cast<uintptr_t>(one.const_data_ptr()) % 16 != 0 ? 1 : 0;
      to.n_dimensions = one.dim();
      to.sizes = one.sizes().data();
      to.strides = one.strides().data();
    }
  });
}

char* pw_package_load(const char* path, size_t n_runners, int32_t device_index, pw_package** package) {
  return guarded([&] {
    // libtorch does not say that packages may be loaded at the same time. It takes milliseconds: one after the other.
    static std::mutex one_at_a_time;
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    preload_libtorch();
    const auto index = static_cast<c10::DeviceIndex>(device_index);
    // Constants and kernels are loaded for the current device.
    c10::OptionalDeviceGuard guard;
    if (index >= 0) {
      guard.reset_device(c10::Device(c10::kCUDA, index));
    }
    const bool is_single_threaded = n_runners == 1;
    *package = new pw_package{{path, "model", is_single_threaded, n_runners, index}, index};
  });
}

char* pw_package_run(
    pw_package* package, const void* const* inputs, size_t n_inputs, void** outputs, size_t n_outputs) {
  return guarded([&] {
    // Casts are in the code, as far as its graph was captured under autocast: a caller that is under it now has no say in them.
    c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    if (package->device_index < 0) {
      run_on_cpu(*package->loader.get_runner(), inputs, n_inputs, outputs, n_outputs);
    } else {
      run_on_gpu(*package, inputs, n_inputs, outputs, n_outputs);
    }
  });
}

void pw_package_free(pw_package* package) {
  // A destructor that throws ends the process; libtorch's do not.
  delete package;
}

char* pw_load_library(const char* path) {
  return guarded([&] { load_globally(path); });
}

char* pw_has_operator(const char* name, bool* is_there) {
  return guarded([&] {
    const std::string text = name;
    const auto dot = text.find('.', text.find("::"));
    const std::string overload = dot == std::string::npos ? "" : text.substr(dot + 1);
    // Python calls the overload without a name "default".
    const c10::OperatorName wanted{text.substr(0, dot), overload == "default" ? "" : overload};
    *is_there = c10::Dispatcher::singleton().findSchema(wanted).has_value();
  });
}

char* pw_load_cuda(int32_t* n_devices) {
  return guarded([&] {
    *n_devices = 0;
    load_globally(library_folder() + "/libtorch_cuda.so");
    if (c10::impl::hasDeviceGuardImpl(c10::kCUDA)) {
      *n_devices = c10::impl::getDeviceGuardImpl(c10::kCUDA)->deviceCount();
    }
  });
}

char* pw_synchronise(int32_t device_index) {
  return guarded([&] {
    const c10::Device device(c10::kCUDA, static_cast<c10::DeviceIndex>(device_index));
    const auto* implementation = c10::impl::getDeviceGuardImpl(c10::kCUDA);
    implementation->synchronizeStream(implementation->getStream(device));
  });
}

char* pw_library_folder(void) {
  try {
    return copied(library_folder());
  } catch (...) {
    return nullptr;
  }
}

const char* pw_header_version(void) {
  return TORCH_VERSION;
}

void pw_error_free(char* message) {
  std::free(message);
}
}
