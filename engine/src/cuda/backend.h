// The backend of Hopper GPUs: the model's operators as kernels, one after another in one stream, without the host in between. Steps that
// decode are graphs, captured once for each size, the forward pass and sampling apart: a row whose answer must be of a format has its mask
// computed on the host while the forward runs.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "blaslt.h"
#include "cuda.h"
#include "layers.h"
#include "operators.h"
#include "step_buffer.h"

namespace millrace {

class CudaBackend final : public Backend {
 public:
  CudaBackend(const ModelFile& file, const Model& model, const KvSlots& slots, Team& team, const CudaLimits& limits, std::vector<std::string>& log);
  ~CudaBackend() override;

  void begin(const Plan& plan) override;
  std::vector<SampledToken> finish() override;
  bool is_done() const override { return cudaEventQuery(flights_[finished_ % flights_max].arrived) != cudaErrorNotReady; }
  int steps_ahead() const override { return 1; }
  bool warm_up() override;
  const MatrixWork& work() const { return work_; }

 private:
  struct Graph {
    cudaGraphExec_t forward = nullptr, sampling = nullptr;
  };
  // A step on its way: where its results arrive, and how many log-probabilities each sample tells, -1 for none.
  struct Flight {
    PinnedArray<SampleResult> results;  // [S]
    PinnedArray<uint32_t> masks;        // [S][mask words]
    cudaEvent_t arrived = nullptr;
    std::vector<int> logprobs;          // [samples]
  };
  static constexpr int flights_max = 2;

  void share_norms();
  void tell_readers();
  void reserve();
  void find_kv_scales();
  void reserve_experts(const CudaExperts& op);
  void upload_history(const Plan& plan);
  void run_eagerly(const Plan& plan, const StepRoom& needed);
  void run_graph(const Plan& plan, const StepRoom& needed);
  StepRoom room_of_graph(int tokens) const;
  struct Product {
    const DeviceMatrix* w = nullptr;
    const __nv_bfloat16* x = nullptr;
    BlasLt::Result result = BlasLt::Result::f32;
    void* y = nullptr;
    bool adds = false;
  };
  Product product_of(const CudaOperator& op) const;
  bool tune(int tokens);
  Graph& graph_of(const StepRoom& room);
  template <typename Work>
  cudaGraphExec_t capture(const Work& work);
  void upload_masks(const Plan& plan);
  void read_logits(const Plan& plan, const StepRoom& room);
  void await(cudaEvent_t event);

  int whole_step(int tokens) const;
  int graph_size(int tokens) const;
  void forward(const StepView& step);
  bool runs_layers() const { return layers_claim_ != nullptr && layers_claim_->is_granted(); }
  const Layers* layers_of(const StepView& step);
  std::vector<Layer> list_layers(const StepView& step) const;
  static MatmulOutput store_output(const DeviceLinear& linear, float* y, bool adds);
  MatmulOutput gate_output(const StepView& step, const CudaGateUp& op) const;
  HeadsTask heads_task(const CudaQkv& op) const;
  AttendTask attend_task(const StepView& step, const CudaAttend& op) const;
  void run_operator(const StepView& step, const CudaEmbed& op);
  void run_operator(const StepView& step, const CudaQkv& op);
  void run_operator(const StepView& step, const CudaAttend& op);
  void run_operator(const StepView& step, const CudaProject& op);
  void run_operator(const StepView& step, const CudaGateUp& op);
  void run_operator(const StepView& step, const CudaDown& op);
  void run_operator(const StepView& step, const CudaExperts& op);
  void run_operator(const StepView& step, const CudaLogits& op);
  void sample_tokens(const StepView& step);

  // y = w . x + bias for all of the step's tokens.
  void multiply(const DeviceLinear& linear, const __nv_bfloat16* x, int tokens, float* y, bool adds, const NormInput& norm = {}, const NormOutput& next = {});
  void multiply_many(const DeviceMatrix& w, const __nv_bfloat16* x, int tokens, BlasLt::Result result, void* y, bool adds);
  void add_to_stream(const StepView& step, const DeviceLinear& linear, const DeviceNorm& post_norm, const CudaReader& next, const __nv_bfloat16* x);
  NormInput normed_input(const StepView& step, const DeviceNorm& norm, const DeviceMatrix& reader, const CudaWriter& left);
  // What a matrix reads in a step.
  Activations activations(const DeviceMatrix& reader, int tokens) const {
    return reader.type != DeviceMatrix::Type::bf16 && is_own(reader, tokens) ? Activations::half : Activations::bfloat16;
  }
  // A norm that is left by who wrote x.
  NormInput left_norm(const DeviceNorm& norm) const { return {squares_.get(), config_.hidden / square_values, config_.hidden, norm.epsilon}; }
  NormOutput left_for(const StepView& step, const DeviceMatrix& writer, const CudaReader& next) const;
  Quantized quantized_for(const DeviceMatrix& w, int tokens) const;
  BlasLt::Input input_of(const DeviceMatrix& w, const __nv_bfloat16* x, int tokens);
  BlasLt::Input place_of_input(const DeviceMatrix& w, const __nv_bfloat16* x) const;
  // Others cuBLASLt multiplies, though norms and gates then take kernels of their own, and four bits become bfloat16 in each step.
  bool is_own(const DeviceMatrix& w, int tokens) const { return tokens <= w.own_max || blas_ == nullptr || limits_.is_deterministic; }
  void multiply_own(const DeviceMatrix& w, const __nv_bfloat16* x, int tokens, const MatmulOutput& output);
  KvView kv_of(int layer) const;

  const ModelConfig config_;
  const KvSlots& slots_;
  const CudaLimits limits_;
  int device_ = 0;
  cudaStream_t stream_ = nullptr;
  Flight flights_[flights_max];
  uint64_t begun_ = 0, finished_ = 0;        // steps
  std::unique_ptr<CudaWeights> weights_;
  std::vector<CudaOperator> operators_;
  DeviceArray<float> kv_scales_;             // [layers][of keys, of values][kv_heads], where these are E4M3
  std::unique_ptr<BlasLt> blas_;
  MatrixWork work_;
  std::unique_ptr<StepBuffer> step_;
  std::map<int, Graph> graphs_;  // by their tokens
  std::unique_ptr<LayersClaim> layers_claim_;  // none: the model's layers are not run in one kernel
  std::map<int, std::unique_ptr<Layers>> layers_;  // by their tokens too

  // One step's values. T is limits_.tokens_max and some, S limits_.samples_max.
  std::vector<DeviceRope> ropes_;
  std::vector<DeviceArray<float2>> turns_;   // [T][pairs], one a RoPE
  DeviceArray<float> x_;                     // [T][hidden]
  DeviceArray<__nv_bfloat16> normed_;        // [T][hidden, padded]
  DeviceArray<float> squares_;               // [T][hidden / square_values]
  DeviceArray<float> qkv_;                   // [T][(heads + 2 kv_heads) * head_dim]
  DeviceArray<__nv_bfloat16> q_;             // [T][heads * head_dim]
  DeviceArray<__nv_bfloat16> attended_;      // [T][heads * head_dim, padded]
  DeviceArray<uint8_t> wide_;                // [T][2 * ffn] of bfloat16, or [wide_tokens_max][2 * ffn] of float32
  DeviceArray<__nv_bfloat16> gated_;         // [T][ffn, padded]
  DeviceArray<uint8_t> quants_;              // [T][hidden or heads * head_dim, padded], of what matrices of E4M3 read,
  DeviceArray<uint8_t> gated_quants_;        // [T][ffn, padded], and of what down reads: others may be multiplied between
  DeviceArray<float> quant_scales_, gated_scales_;  // [T]
  DeviceArray<__nv_bfloat16> unpacked_;      // of what is in four bits, as many rows at a time as there is room for
  DeviceArray<float> added_;                 // [T][hidden]
  DeviceArray<float> partials_;              // see AttendScratch
  DeviceArray<int> arrived_;
  DeviceArray<float> logits_, adjusted_;     // [S][vocabulary]
  DeviceArray<uint32_t> masks_;              // [S][mask words]
  DeviceArray<int32_t> history_;             // [slots][context_tokens]
  DeviceArray<int32_t> last_tokens_;         // [slots]
  DeviceArray<uint8_t> sample_scratch_;
  DeviceArray<SampleResult> results_;        // [S]
  // Of routed experts; see ExpertsTask.
  DeviceArray<float> scores_, expert_weights_, expert_wide_, expert_added_;
  DeviceArray<int32_t> chosen_, entries_, entry_tokens_, first_entries_;
  DeviceArray<__nv_bfloat16> expert_gated_;
};

}  // namespace millrace
