// llama.cpp's logits of windows of tokens, through its public API, so that its distance from float32 is measured as ours is.
//
//     peer-logits MODEL THREADS on|off      flash attention
//
// Prints what of the CPU it uses on stderr and writes u32 vocabulary. Then reads windows from stdin, each u32 count | i32 token[count], and answers each with
// f32 logits [count][vocabulary], computed from an empty context in one batch. Ends at the end of stdin.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "llama.h"

namespace {

constexpr uint32_t context_tokens = 2048;

int fail(const char* why) {
  std::fprintf(stderr, "peer-logits: %s\n", why);
  return 1;
}

// Only errors: the rest would drown what the caller prints.
void log_errors(ggml_log_level level, const char* text, void*) {
  if (level >= GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
}

bool decode(llama_context* context, std::vector<llama_token>& tokens) {
  llama_memory_clear(llama_get_memory(context), true);
  llama_batch batch = llama_batch_init(static_cast<int32_t>(tokens.size()), 0, 1);
  batch.n_tokens = static_cast<int32_t>(tokens.size());
  for (int32_t i = 0; i < batch.n_tokens; i++) {
    batch.token[i] = tokens[static_cast<size_t>(i)];
    batch.pos[i] = i;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = 0;
    batch.logits[i] = 1;
  }
  const bool ok = llama_decode(context, batch) == 0;
  llama_batch_free(batch);
  return ok;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return fail("give MODEL THREADS on|off");
  llama_log_set(log_errors, nullptr);
  llama_model_params model_params = llama_model_default_params();
  model_params.progress_callback = [](float, void*) { return true; };  // in place of dots
  llama_model* model = llama_model_load_from_file(argv[1], model_params);
  if (model == nullptr) return fail("the model cannot be loaded");
  llama_context_params params = llama_context_default_params();
  params.n_ctx = params.n_batch = context_tokens;
  params.n_threads = params.n_threads_batch = std::atoi(argv[2]);
  params.flash_attn_type = std::strcmp(argv[3], "on") == 0 ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  llama_context* context = llama_init_from_model(model, params);
  if (context == nullptr) return fail("no context could be made");

  std::fprintf(stderr, "%s\n", llama_print_system_info());
  const uint32_t vocabulary = static_cast<uint32_t>(llama_vocab_n_tokens(llama_model_get_vocab(model)));
  std::fwrite(&vocabulary, sizeof vocabulary, 1, stdout);
  std::fflush(stdout);
  uint32_t count = 0;
  while (std::fread(&count, sizeof count, 1, stdin) == 1) {
    if (count == 0 || count > context_tokens) return fail("a window is empty or too long");
    std::vector<llama_token> tokens(count);
    if (std::fread(tokens.data(), sizeof(llama_token), count, stdin) != count) return fail("a window was cut short");
    if (!decode(context, tokens)) return fail("llama_decode failed");
    for (uint32_t i = 0; i < count; i++) std::fwrite(llama_get_logits_ith(context, static_cast<int32_t>(i)), sizeof(float), vocabulary, stdout);
    std::fflush(stdout);
  }
  llama_free(context);
  llama_model_free(model);
  return 0;
}
