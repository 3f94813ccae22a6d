#include "request.h"

#include <algorithm>
#include <cmath>

#include "base/text.h"

namespace millrace {
namespace {

Status check_sampling(const SamplingOptions& sampling, int vocabulary_size) {
  const int most = std::min(logprobs_max, vocabulary_size);
  if (sampling.logprobs > most)
    return Status::error(text("the ", sampling.logprobs, " likeliest log-probabilities are asked for; ask for at most ", most));
  if (sampling.bias.size() > biases_max)
    return Status::error(text("the logits of ", sampling.bias.size(), " tokens are biased; bias at most ", biases_max));
  for (const TokenBias& each : sampling.bias) {
    if (each.token < 0 || each.token >= vocabulary_size)
      return Status::error(text("token ", each.token, " of the logit bias is not in the vocabulary of ", vocabulary_size));
    if (!std::isfinite(each.bias)) return Status::error(text("the logit bias of token ", each.token, " is not a number"));
  }
  return Status();
}

Status check_continued(const Request& request, int vocabulary_size) {
  if (request.continued.empty()) return Status();
  if (request.grammar != nullptr) return Status::error("a format derives an answer from its first token on; continue none beside it");
  if (request.continued.size() > static_cast<size_t>(request.tokens_max))
    return Status::error(text("the answer is continued with ", request.continued.size(), " tokens, but may have at most ", request.tokens_max));
  for (const int32_t token : request.continued)
    if (token < 0 || token >= vocabulary_size)
      return Status::error(text("token ", token, ", with which the answer is continued, is not in the vocabulary of ", vocabulary_size));
  return Status();
}

}  // namespace

Status check_tokens(const std::vector<int32_t>& tokens, const ModelInfo& model) {
  if (tokens.empty()) return Status::error("the prompt has no tokens; give at least one");
  for (const int32_t token : tokens)
    if (token < 0 || token >= model.vocabulary_size)
      return Status::error(text("token ", token, " is not in the vocabulary of ", model.vocabulary_size));
  return Status();
}

Status check_request(const Request& request, const ModelInfo& model) {
  if (Status status = check_tokens(request.prompt, model); !status.ok()) return status;
  if (request.tokens_max < 1) return Status::error(text("at most ", request.tokens_max, " tokens are asked for; ask for one or more"));
  if (request.tokens_min < 0 || request.tokens_min > request.tokens_max)
    return Status::error(text("at least ", request.tokens_min, " tokens are asked for, but at most ", request.tokens_max));
  if (request.grammar != nullptr && (request.tokens_min > 0 || request.ignores_end))
    return Status::error("a format says where the answer may end; ask for no least length beside it, and do not ignore the end");
  for (const std::string& stop : request.stops)
    if (stop.empty()) return Status::error("a stop string is empty; it would end every answer before it begins");
  const int64_t total = static_cast<int64_t>(request.prompt.size()) + request.tokens_max;
  if (total > model.context_tokens)
    return Status::error(text("the prompt's ", request.prompt.size(), " tokens plus at most ", request.tokens_max, " more are ", total,
                              ", over the context of ", model.context_tokens));
  if (Status status = check_continued(request, model.vocabulary_size); !status.ok()) return status;
  return check_sampling(request.sampling, model.vocabulary_size);
}

Status refusal(const Request& request, const Schedule& schedule, const ScheduleLimits& limits) {
  const int waiting = schedule.waiting_count(request.service);
  if (waiting >= limits.waiting_max) return Status::error(text(waiting, " requests wait already"));
  return Status::error(text("the first token within ", request.deadlines.ttft_us / 1000, " ms and each later one within ", request.deadlines.itl_us / 1000,
                            " ms cannot be promised now, with ", schedule.running_count(), " answers running and ", waiting, " requests waiting"));
}

}  // namespace millrace
