// Drives the shim in every way that src/shim.rs does, in a program that AddressSanitizer watches: `sanitized PACKAGE NOT_A_PACKAGE`.
//
// The package takes x[n, 16] and weight[16, 16], float32, and returns two tensors (tests/common/mod.rs, `scaled`).

#include "../shim/package.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>

namespace {

void require(bool condition, const char* what) {
  if (!condition) {
    std::fprintf(stderr, "failed: %s\n", what);
    std::exit(1);
  }
}

void require_none(char* message, const char* what) {
  if (message != nullptr) {
    std::fprintf(stderr, "%s\n", message);
    pw_error_free(message);
  }
  require(message == nullptr, what);
}

void require_message(char* message, const char* what) {
  require(message != nullptr && std::strlen(message) > 0, what);
  pw_error_free(message);
}

void call(pw_package* package, int64_t n) {
  const at::Tensor x = at::ones({n, 16});
  const at::Tensor weight = at::eye(16);
  const void* inputs[] = {&x, &weight};
  pw_tensor described[2];
  require_none(pw_describe(inputs, 2, described), "describe");
  require(described[0].n_dimensions == 2 && described[0].sizes[0] == n && described[0].strides[0] == 16, "sizes and strides");
  void* outputs[2] = {nullptr, nullptr};
  require_none(pw_package_run(package, inputs, 2, outputs, 2), "a call");
  const auto* sums = static_cast<at::Tensor*>(outputs[1]);
  require(at::allclose(*sums, at::full({n}, 32.0)), "the sums of the rows, doubled in place");
  require(at::allclose(x, at::full({n, 16}, 2.0)), "the input that is changed in place");
  for (void* output : outputs) {
    delete static_cast<at::Tensor*>(output);
  }
}

} // namespace

int main(int argc, char** argv) {
  require(argc == 3, "usage: sanitized PACKAGE NOT_A_PACKAGE");
  pw_package* package = nullptr;
  require_message(pw_package_load(argv[2], 1, -1, &package), "a file that is no package");
  require_message(pw_package_load("/nowhere.pt2", 1, -1, &package), "a file that is not there");
  require_message(pw_load_library("/nowhere.so"), "a library that is not there");
  for (const size_t n_runners : {1, 3}) {
    require_none(pw_package_load(argv[1], n_runners, -1, &package), "a package");
    for (const int64_t n : {2, 3, 8}) {
      call(package, n);
    }
    // More outputs than the package has: what it returned is freed.
    const at::Tensor x = at::ones({2, 16});
    const at::Tensor weight = at::eye(16);
    const void* inputs[] = {&x, &weight};
    void* outputs[3] = {nullptr, nullptr, nullptr};
    require_message(pw_package_run(package, inputs, 2, outputs, 3), "three outputs of two");
    require(outputs[0] == nullptr, "outputs of a call that failed");
    if (n_runners > 1) {
      std::vector<std::thread> threads;
      for (int i = 0; i < 4; ++i) {
        threads.emplace_back([package] {
          for (int n = 2; n < 50; ++n) {
            call(package, 2 + n % 7);
          }
        });
      }
      for (std::thread& thread : threads) {
        thread.join();
      }
    }
    pw_package_free(package);
  }
  const at::Tensor sparse = at::eye(4).to_sparse();
  const at::Tensor none;
  const void* odd[] = {&sparse, &none};
  pw_tensor described[2];
  require_none(pw_describe(odd, 2, described), "describe");
  require(described[0].is_not_plain != 0 && described[1].dtype == -1, "tensors that are not plain");
  bool is_there = false;
  require_none(pw_has_operator("aten::relu", &is_there), "an operator");
  require(is_there, "aten::relu");
  require_none(pw_has_operator("aten::add.Tensor", &is_there), "an overload");
  require(is_there, "aten::add.Tensor");
  require_none(pw_has_operator("nowhere::op", &is_there), "an operator that is not there");
  require(!is_there, "nowhere::op");
  char* folder = pw_library_folder();
  require(folder != nullptr, "libtorch's folder");
  pw_error_free(folder);
  std::puts("done");
  return 0;
}
