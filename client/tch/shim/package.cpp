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
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/version.h>

struct pw_package {
  torch::inductor::AOTIModelPackageLoader loader;
  c10::DeviceIndex device_index;
};

namespace {

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
    std::vector<at::Tensor> arguments;
    arguments.reserve(n_inputs);
    for (size_t i = 0; i < n_inputs; ++i) {
      arguments.push_back(tensor(inputs[i]));
    }
    c10::OptionalDeviceGuard guard;
    if (package->device_index >= 0) {
      guard.reset_device(c10::Device(c10::kCUDA, package->device_index));
    }
    // Casts are in the code, as far as its graph was captured under autocast: a caller that is under it now has no say in them.
    c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    // Without a stream's handle the runner takes the current stream of the current device.
    std::vector<at::Tensor> returned = package->loader.boxed_run(std::move(arguments), nullptr);
    if (returned.size() != n_outputs) {
      throw std::runtime_error(
          "the package returned " + std::to_string(returned.size()) + " tensors, and its manifest says " +
          std::to_string(n_outputs));
    }
    std::vector<std::unique_ptr<at::Tensor>> owned;
    owned.reserve(n_outputs);
    for (at::Tensor& one : returned) {
      owned.push_back(std::make_unique<at::Tensor>(std::move(one)));
    }
    for (size_t i = 0; i < n_outputs; ++i) {
      outputs[i] = owned[i].release();
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
