// Grammars by xgrammar's C++ core (Apache-2.0): it compiles a format against the vocabulary's bytes, and knows after each token which may follow.
#include <dlpack/dlpack.h>
#include <xgrammar/xgrammar.h>

#include <stdexcept>

#include "base/attempt.h"
#include "grammar.h"

// How it speaks of what is wrong; warnings are of features of a schema that it takes less strictly, and go nowhere.
namespace xgrammar {
[[noreturn]] void LogFatalImpl(const std::string&, int, const std::string& message) { throw std::runtime_error(message); }
void LogMessageImpl(const std::string&, int, int, const std::string&) {}
}  // namespace xgrammar

namespace millrace {
namespace {

class XConstraint final : public Constraint {
 public:
  XConstraint(const xgrammar::CompiledGrammar& grammar, int vocabulary_size) : Constraint(vocabulary_size), matcher_(grammar) {}

 private:
  void fill_bits(uint32_t* bits) override {
    int64_t words = static_cast<int64_t>(mask().words());
    DLTensor tensor{};
    tensor.data = bits;
    tensor.device = {kDLCPU, 0};
    tensor.ndim = 1;
    tensor.dtype = {kDLInt, 32, 1};
    tensor.shape = &words;
    matcher_.FillNextTokenBitmask(&tensor);
  }
  bool take(int32_t token) override { return matcher_.AcceptToken(token); }

  xgrammar::GrammarMatcher matcher_;
};

class XGrammar final : public Grammar {
 public:
  XGrammar(xgrammar::CompiledGrammar compiled, int vocabulary_size) : compiled_(std::move(compiled)), vocabulary_size_(vocabulary_size) {}
  std::unique_ptr<Constraint> begin() const override { return std::make_unique<XConstraint>(compiled_, vocabulary_size_); }
  size_t bytes() const override { return compiled_.MemorySizeBytes(); }

 private:
  xgrammar::CompiledGrammar compiled_;
  int vocabulary_size_;
};

class XCompiler final : public GrammarCompiler {
 public:
  // Tokens are given as their bytes: control tokens have none, and never fit; those that end an answer fit where the grammar may end.
  XCompiler(const Vocabulary& vocabulary, int vocabulary_size)
      : vocabulary_size_(vocabulary_size),
        compiler_(xgrammar::TokenizerInfo(vocabulary.bytes, xgrammar::VocabType::RAW, vocabulary_size, vocabulary.stops), 1, false) {}

  Result<std::shared_ptr<const Grammar>> compile(const Format& format) override {
    std::shared_ptr<const Grammar> grammar;
    const Status status = attempt([&] { grammar = std::make_shared<XGrammar>(compiled(format), vocabulary_size_); });
    if (!status.ok()) return status;
    return grammar;
  }

 private:
  xgrammar::CompiledGrammar compiled(const Format& format) {
    switch (format.kind) {
      case Format::Kind::json_schema:
        return compiler_.CompileJSONSchema(format.text);
      case Format::Kind::regex:
        return compiler_.CompileRegex(format.text);
      case Format::Kind::grammar:
        return compiler_.CompileGrammar(format.text);
    }
    throw std::logic_error("a format of unknown kind");
  }

  int vocabulary_size_;
  xgrammar::GrammarCompiler compiler_;
};

}  // namespace

bool has_grammars() { return true; }

std::unique_ptr<GrammarCompiler> make_grammar_compiler(const Vocabulary& vocabulary, int vocabulary_size) {
  return std::make_unique<XCompiler>(vocabulary, vocabulary_size);
}

}  // namespace millrace
