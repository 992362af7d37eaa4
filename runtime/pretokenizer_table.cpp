// The table of pre-tokenizers: the names that converters write to tokenizer.ggml.pre, and for each the patterns that
// its family of models was trained with (they stand in the models' own tokenizer.json). A new family is a row here. The
// patterns run in linear time on every text: a run is never scanned again from its middle, which is why some begin with
// a look-behind, and no part can match the same characters in two ways.
#include <array>

#include "infer/error.h"
#include "runtime/pretokenizer.h"

namespace infer {
namespace {

// English endings, then words, numbers and the rest with one space in front.
constexpr std::string_view kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// The family of Llama 3: words may take any one sign in front, signs take the line ends behind them.
constexpr std::string_view kLlama3 =
    R"('(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2 =  // digits one by one
    R"('(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen35 =  // marks belong to words
    R"('(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|)"
    R"( ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3LongNumbers =
    R"('(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kNoEndings =
    R"([^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kSeedCoder =
    R"('(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
    R"( ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kBailing = R"('(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}|)"
                                      R"( ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)";
constexpr std::string_view kExaoneMoe =  // words and single letters with single spaces between them stay together
    R"('(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\n\p{L}\p{N}]?\p{L}\p{M}*+(?: ?\p{L}\p{M}*+)*+|\p{N}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+)";
// Cuts a piece of nothing but blanks into powers of two. The first match looks whether the piece is one; \G, the end of
// the match before, stands for that answer from then on.
constexpr std::string_view kBlanksInPowersOfTwo =
    R"((?:\A(?=[^\S\r\n]+\z)|\G(?!\A)))"
    R"((?:\s{512}|\s{256}|\s{128}|\s{64}|\s{32}|\s{16}|\s{8}|\s{4}|\s{1,2}))";

// The family of GPT-4o: a word ends where lower case turns to upper case.
constexpr std::string_view kTekken = R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
                                     R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|)"
                                     R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kGpt4o = R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
                                    R"((?:'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD]))?|)"
                                    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
                                    R"((?:'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD]))?|)"
                                    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kGpt4oSingleDigits =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"((?:'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD]))?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"((?:'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD]))?|)"
    R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// The same without Han characters, which stay together. The two classes of letters are written as what they exclude,
// since a class cannot be intersected with another.
constexpr std::string_view kKimi =
    R"(\p{Han}+|)"
    R"([^\r\n\p{L}\p{N}]?[^\p{Ll}\p{N}\p{P}\p{S}\p{Z}\p{C}\p{Han}]*[^\p{Lu}\p{Lt}\p{N}\p{P}\p{S}\p{Z}\p{C}\p{Han}]+)"
    R"((?:'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD]))?|)"
    R"([^\r\n\p{L}\p{N}]?[^\p{Ll}\p{N}\p{P}\p{S}\p{Z}\p{C}\p{Han}]+[^\p{Lu}\p{Lt}\p{N}\p{P}\p{S}\p{Z}\p{C}\p{Han}]*)"
    R"((?:'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD]))?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// DeepSeek. The letters are the cased ones of the Unicode version of that time, listed one range after the other.
constexpr std::string_view kDeepseekLetters =
    R"(\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF})"
    R"(\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5})"
    R"(\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA})"
    R"(\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D})"
    R"(\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4})"
    R"(\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC})"
    R"(\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128})"
    R"(\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B})"
    R"(\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787})"
    R"(\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A})"
    R"(\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF})"
    R"(\x{1E900}-\x{1E943}]+)";
constexpr std::string_view kDeepseekSigns =
    R"(\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+)";
constexpr std::string_view kLineEnd = R"([\r\n])";
constexpr std::string_view kTrailingBlanks = R"((?<!\s)\s++$)";
constexpr std::string_view kHanAndHangul = R"([\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+)";
constexpr std::string_view kHanAndKana = R"([\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+)";
constexpr std::string_view kDeepseek3 =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|)"
    R"( ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kSpark =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|)"
    R"( ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+)";
constexpr std::string_view kYoutuScripts =
    R"([\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+|[\x{FF01}\x{2026}\x{201C}\x{201D}\x{2018}\x{2019}\x{2014}\x{FF1A}\x{FF1B})"
    R"(\x{FF0C}\x{3001}-\x{303F}\x{FE30}-\x{FE4F}]+|[\x{3105}-\x{312F}]+|[\x{4E00}-\x{9FA5}\x{3040}-\x{30FF}]+)";
constexpr std::string_view kAfmoeScripts =
    R"([\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{F900}-\x{FAFF}\x{3040}-\x{30FF}\x{FF65}-\x{FF9F}\x{2F00}-\x{2FDF})"
    R"(\x{E40}-\x{E7F}\x{E80}-\x{EFF}\x{1780}-\x{17FF}\x{1000}-\x{109F}\x{AA60}-\x{AA7F}\x{A9E0}-\x{A9FF})"
    R"(\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}]+)";

constexpr std::string_view kFalconSigns = R"([\p{P}\$\+<=>\^~\|`]+)";
constexpr std::string_view kDefaultSigns = R"([\p{P}\$\+<=>\^~\|]+)";
constexpr std::string_view kThreeDigits = R"([0-9][0-9][0-9])";
constexpr std::string_view kDigit = R"(\p{N})";
constexpr std::string_view kDigits = R"(\p{N}+)";
constexpr std::string_view kUpToThreeDigits = R"(\p{N}{1,3})";
constexpr std::string_view kDecimalRun = R"(\d+)";
constexpr std::string_view kDecimalRunAtWordEnd = R"((?<!\d)\d++\b)";
constexpr std::string_view kLines = R"([^\n]+|\n+)";
// The brackets and the bar are members of this class; that is how the models were trained.
constexpr std::string_view kBloom = R"( ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+)";

struct TableRule {
  std::string_view pattern;
  Cut cut = Cut::around;
};

struct Row {
  std::string_view names;  ///< separated by spaces
  std::array<TableRule, 6> rules;
  bool ignore_merges = false, adds_bos = false;
};

constexpr Row kTable[] = {
    {"gpt-2 gpt-neox phi-2 mpt olmo jais trillion granite-docling jina-es jina-de jina-v1-en jina-v2-es jina-v2-de "
     "jina-v2-code roberta-bpe gigachat a.x-4.0 mellum modern-bert exaone4",
     {{{kGpt2}}}},
    {"llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", {{{kLlama3}}}, true, true},
    {"dbrx smaug-bpe glm4 chatglm-bpe", {{{kLlama3}}}},
    {"qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2", {{{kQwen2}}}},
    {"qwen35", {{{kQwen35}}}},
    {"smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", {{{kDigit}, {kGpt2}}}},
    {"falcon", {{{kFalconSigns}, {kGpt2}, {kThreeDigits}}}},
    {"default", {{{kDefaultSigns}, {kGpt2}, {kDigits}, {kThreeDigits}}}},
    {"deepseek-llm",
     {{{kLineEnd}, {kDeepseekLetters}, {kDeepseekSigns}, {kTrailingBlanks}, {kHanAndHangul}, {kDigits}}}},
    {"deepseek-coder", {{{kLineEnd}, {R"(\s?\p{L}+)"}, {R"(\s?\p{P}+)"}, {kHanAndHangul}, {kDigit}}}},
    {"deepseek-v3 hunyuan-dense joyai-llm hy_v4", {{{kUpToThreeDigits}, {kHanAndKana}, {kDeepseek3}}}},
    {"spark2_5", {{{kUpToThreeDigits}, {kHanAndKana}, {kSpark}, {kDigit}}}},
    {"youtu", {{{kYoutuScripts}, {kGpt4oSingleDigits}}}, true},
    {"tekken", {{{kTekken}}}, true, true},
    {"gpt-4o llama4 kanana2 talkie minimax-m2", {{{kGpt4o}}}},
    {"granite-embed-multi-97m", {{{kGpt4o}}}, true},
    {"tiny_aya cohere2moe", {{{kDecimalRunAtWordEnd, Cut::in_threes}, {kGpt4o}}}},
    {"kimi-k2", {{{kKimi}}}},
    {"superbpe", {{{kDigits}, {kDecimalRun, Cut::in_threes}}}},
    {"afmoe", {{{kDecimalRun, Cut::in_threes}, {kAfmoeScripts}, {kDeepseek3}}}},
    {"bailingmoe bailingmoe2 llada-moe", {{{kBailing}}}},
    {"seed-coder", {{{kSeedCoder}}}},
    {"ufakzeka", {{{kNoEndings}}}},
    {"laguna", {{{kLines}, {kQwen2}}}},
    {"exaone-moe", {{{kExaoneMoe}}}},
    {"jais-2", {{{kLlama3}, {kBlanksInPowersOfTwo}}}},
    {"minicpm5", {{{kUpToThreeDigits}, {kLlama3LongNumbers}}}, true},
    {"bloom gpt3-finnish poro-chat", {{{kBloom}}}},
    {"viking", {{{kBloom}, {kDigit}}}},
    {"chameleon",
     {{{R"(<sentinel:[0-9]+>)"},
       {R"(IMGIMG[A-I]{1,4}Z)"},
       {R"([\t\n]|    |  )"},
       {kDigit},
       {R"([\p{P}!-/:-@\[-`{-~])"},
       {kGpt2}}},
     false,
     true},
};

template <class Visit>  // visit(name, row) for every name; stops when it returns true
bool for_each_name(const Visit& visit) {
  for (const Row& row : kTable) {
    std::string_view rest = row.names;
    while (!rest.empty()) {
      const size_t end = rest.find(' ');
      if (visit(rest.substr(0, end), row)) return true;
      rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    }
  }
  return false;
}

}  // namespace

PretokenizerSpec pretokenizer_spec(const std::string& name, const std::string& where) {
  PretokenizerSpec spec;
  const bool found = for_each_name([&](std::string_view known, const Row& row) {
    if (known != name) return false;
    for (const TableRule& rule : row.rules) {
      if (!rule.pattern.empty()) spec.rules.push_back({std::string(rule.pattern), rule.cut});
    }
    spec.ignore_merges = row.ignore_merges;
    spec.adds_bos = row.adds_bos;
    return true;
  });
  if (!found) {
    throw Error(ErrorKind::bad_file, where, "unknown pre-tokenizer", '"' + escaped(name) + '"',
                "one of the known names (gpt-2, llama-bpe, qwen2, ...); set one with --override-kv "
                "tokenizer.ggml.pre=str:NAME");
  }
  return spec;
}

std::vector<std::string> pretokenizer_names() {
  std::vector<std::string> names;
  for_each_name([&](std::string_view name, const Row&) {
    names.emplace_back(name);
    return false;
  });
  return names;
}

}  // namespace infer
