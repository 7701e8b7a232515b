// The process group `hccl` for the simulated NPU: gloo on the same bytes, with HCCL's refusals and its time limit.

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <chrono>
#include <cstdlib>

namespace {

using Tensors = std::vector<at::Tensor>;

at::Tensor as_host(const at::Tensor& t) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("npu_simulator::host_view", "").typed<at::Tensor(const at::Tensor&)>();
  TORCH_CHECK(t.device().type() == c10::DeviceType::PrivateUse1, "hccl: tensors must be on the NPU, got ", t.device());
  TORCH_CHECK(t.scalar_type() != at::kDouble, "hccl: float64 is not supported");
  return op.call(t);
}

Tensors as_host(const Tensors& tensors) {
  Tensors out;
  for (const auto& t : tensors) out.push_back(as_host(t));
  return out;
}

// How long an operation waits for the other processes: HCCL's own default is 1836 s.
template <typename Options>
Options limited(Options options) {
  const char* seconds = std::getenv("HCCL_EXEC_TIMEOUT");
  options.timeout = std::chrono::seconds(seconds ? std::atol(seconds) : 1836);
  return options;
}

// Gloo's work on host views; its result is the device tensors.
struct HcclWork final : c10d::Work {
  HcclWork(c10::intrusive_ptr<c10d::Work> inner, Tensors views, Tensors results)
      : inner_(std::move(inner)), views_(std::move(views)), results_(std::move(results)) {}
  bool isCompleted() override { return inner_->isCompleted(); }
  bool isSuccess() const override { return inner_->isSuccess(); }
  std::exception_ptr exception() const override { return inner_->exception(); }
  void synchronize() override { inner_->wait(); }
  bool wait(std::chrono::milliseconds timeout) override { return inner_->wait(timeout); }
  Tensors result() override { return results_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override {
    // Shared: the inner future may outlive this object.
    auto views = views_, results = results_;
    return inner_->getFuture()->then(
        [views, results](c10::ivalue::Future& done) -> c10::IValue {
          if (done.hasError()) std::rethrow_exception(done.exception_ptr());
          return results;
        },
        c10::ListType::ofTensors());
  }

 private:
  c10::intrusive_ptr<c10d::Work> inner_;
  Tensors views_, results_;
};

struct Hccl final : c10d::Backend {
  Hccl(c10::intrusive_ptr<c10d::Backend> gloo) : Backend(gloo->getRank(), gloo->getSize()), gloo_(std::move(gloo)) {}
  const std::string getBackendName() const override { return "hccl"; }
  void setTimeout(std::chrono::milliseconds) override {}
  void setSequenceNumberForGroup() override {}
  uint64_t getSequenceNumberForGroup() override { return 0; }

  c10::intrusive_ptr<c10d::Work> broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    auto views = as_host(tensors);
    auto work = gloo_->broadcast(views, limited(options));
    return c10::make_intrusive<HcclWork>(work, views, tensors);
  }
  c10::intrusive_ptr<c10d::Work> allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    auto views = as_host(tensors);
    auto work = gloo_->allreduce(views, limited(options));
    return c10::make_intrusive<HcclWork>(work, views, tensors);
  }
  c10::intrusive_ptr<c10d::Work> allgather(
      std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) override {
    std::vector<Tensors> output_views;
    for (const auto& list : outputs) output_views.push_back(as_host(list));
    auto views = as_host(inputs);
    auto work = gloo_->allgather(output_views, views, limited(options));
    return c10::make_intrusive<HcclWork>(work, output_views.at(0), outputs.at(0));
  }
  c10::intrusive_ptr<c10d::Work> _allgather_base(
      at::Tensor& output, at::Tensor& input, const c10d::AllgatherOptions& options) override {
    std::vector<Tensors> parts{as_host(output).view(-1).chunk(getSize())};
    Tensors views{as_host(input).view(-1)};
    auto work = gloo_->allgather(parts, views, limited(options));
    return c10::make_intrusive<HcclWork>(work, parts.at(0), Tensors{output});
  }
  c10::intrusive_ptr<c10d::Work> barrier(const c10d::BarrierOptions& options) override {
    return gloo_->barrier(options);
  }

 private:
  c10::intrusive_ptr<c10d::Backend> gloo_;
};

}  // namespace

PYBIND11_MODULE(_npu_simulator_hccl, m) {
  py::module_::import("torch.distributed");  // registers the base class
  py::class_<Hccl, c10d::Backend, c10::intrusive_ptr<Hccl>>(m, "Hccl").def(
      py::init<c10::intrusive_ptr<c10d::Backend>>());
}
