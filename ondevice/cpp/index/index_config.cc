// Reads an IndexConfig message and the ScannOnDeviceConfig inside it, and refuses what cannot be searched.
#include "index/index_config.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/protobuf.h"

namespace searchforge {
namespace {

constexpr uint32_t kMaxDim = 1 << 14;
constexpr uint64_t kMaxItems = INT32_MAX;
constexpr uint64_t kUint8Embeddings = 2;
constexpr uint64_t kDotProduct = 1;

// Parts of the message that have been found; each may occur once.
struct Parts {
  Bytes scann, hashing, partitioner, offsets;
  uint64_t embedding_type = 0, code_bytes = 0, distance = 0;
};

Status DamagedConfig(const std::string& what) {
  return Damaged("the configuration of the index is damaged (" + what + "); download the file again");
}

Status Expected(const std::string& what, uint64_t found, const char* expected) {
  return Unsupported("the index's " + what + " is " + std::to_string(found) + ", expected " + expected +
                     "; build the index with another setting");
}

bool Set(const ProtoField& field, uint32_t id, Bytes* bytes) {
  if (!field.Is(id, WireType::kBytes)) return true;
  if (bytes->data != nullptr) return false;
  *bytes = field.bytes;
  return true;
}

// Appends a field of floats, which may be packed or one by one.
bool AppendFloats(Bytes message, uint32_t id, std::vector<float>* values) {
  ProtoReader reader(message);
  ProtoField field;
  while (reader.Next(&field)) {
    if (field.Is(id, WireType::kFixed32)) {
      const uint32_t bits = static_cast<uint32_t>(field.number);
      values->push_back(Load<float>(reinterpret_cast<const uint8_t*>(&bits)));
    } else if (field.Is(id, WireType::kBytes)) {
      if (field.bytes.size % sizeof(float) != 0) return false;
      const size_t count = field.bytes.size / sizeof(float), before = values->size();
      values->resize(before + count);
      if (count > 0) std::memcpy(values->data() + before, field.bytes.data, field.bytes.size);
    }
  }
  return !reader.damaged();
}

// Appends the rows of a repeated message whose field 1 is a row of floats; all rows must be of equal length.
Result<uint32_t> AppendRows(Bytes message, uint32_t* width, std::vector<float>* values) {
  ProtoReader reader(message);
  ProtoField field;
  uint32_t rows = 0;
  while (reader.Next(&field)) {
    if (!field.Is(1, WireType::kBytes)) continue;
    const size_t before = values->size();
    if (!AppendFloats(field.bytes, 1, values)) return DamagedConfig("a vector is cut off");
    const size_t length = values->size() - before;
    if (length == 0 || length > kMaxDim) return Expected("number of dimensions", length, "1 to 16384");
    if (rows++ == 0) *width = static_cast<uint32_t>(length);
    if (length != *width) return DamagedConfig("vectors have different lengths");
  }
  if (reader.damaged()) return DamagedConfig("a list of vectors is cut off");
  return rows;
}

bool AllFinite(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
}

Status ReadScann(Bytes message, Parts* parts) {
  ProtoReader reader(message);
  ProtoField field;
  Bytes indexer;
  while (reader.Next(&field)) {
    if (field.Is(1, WireType::kVarint)) parts->distance = field.number;
    if (!Set(field, 2, &indexer) || !Set(field, 3, &parts->partitioner)) return DamagedConfig("a part occurs twice");
  }
  ProtoReader inner(indexer);
  while (inner.Next(&field)) {
    if (!Set(field, 1, &parts->hashing)) return DamagedConfig("a part occurs twice");
  }
  if (reader.damaged() || inner.damaged()) return DamagedConfig("it is cut off");
  return {};
}

Result<Parts> Split(Bytes message) {
  Parts parts;
  ProtoReader reader(message);
  ProtoField field;
  while (reader.Next(&field)) {
    if (field.Is(2, WireType::kVarint)) parts.embedding_type = field.number;
    if (field.Is(3, WireType::kVarint)) parts.code_bytes = field.number;
    if (!Set(field, 1, &parts.scann) || !Set(field, 4, &parts.offsets)) return DamagedConfig("a part occurs twice");
  }
  if (reader.damaged()) return DamagedConfig("it is cut off");
  SF_RETURN_IF_ERROR(ReadScann(parts.scann, &parts));
  if (parts.embedding_type != kUint8Embeddings || parts.hashing.data == nullptr) {
    return Expected("type of embeddings", parts.embedding_type, "2, codes of product quantization");
  }
  if (parts.partitioner.data == nullptr) return Unsupported("the index has no partitions; build it with partitions");
  return parts;
}

// Reads the centroids. `config->dim` is that of the centroids.
Status ReadPartitioner(Bytes message, uint64_t distance, IndexConfig* config) {
  SF_ASSIGN_OR_RETURN(config->partitions, AppendRows(message, &config->dim, &config->centroids));
  ProtoReader reader(message);
  ProtoField field;
  uint64_t own_distance = distance;
  while (reader.Next(&field)) {
    if (field.Is(2, WireType::kFixed32)) {
      const uint32_t bits = static_cast<uint32_t>(field.number);
      config->search_fraction = Load<float>(reinterpret_cast<const uint8_t*>(&bits));
    }
    if (field.Is(3, WireType::kVarint)) own_distance = field.number;
  }
  if (own_distance != kDotProduct) return Expected("distance of partitions", own_distance, "1, the dot product");
  if (config->partitions == 0) return DamagedConfig("it has no centroids");
  if (!AllFinite(config->centroids)) return DamagedConfig("a centroid is not finite");
  if (!(config->search_fraction > 0)) return DamagedConfig("it searches no partitions");
  return {};
}

// Reads the codebooks.
Status ReadHashing(Bytes message, uint64_t distance, IndexConfig* config) {
  ProtoReader reader(message);
  ProtoField field;
  uint64_t lookup_type = 0, own_distance = distance, dim = 0;
  while (reader.Next(&field)) {
    if (field.Is(2, WireType::kVarint)) own_distance = field.number;
    if (field.Is(3, WireType::kVarint)) lookup_type = field.number;
    if (!field.Is(1, WireType::kBytes)) continue;
    uint32_t width = 0, entries;
    SF_ASSIGN_OR_RETURN(entries, AppendRows(field.bytes, &width, &config->codebooks));
    if (entries == 0 || entries > kEntries) return Expected("number of codebook entries", entries, "1 to 256");
    if (config->widths.empty()) config->entries = entries;
    if (entries != config->entries) return DamagedConfig("codebooks have different numbers of entries");
    config->widths.push_back(width);
    dim += width;
  }
  if (reader.damaged()) return DamagedConfig("the codebooks are cut off");
  if (own_distance != kDotProduct) return Expected("distance of codes", own_distance, "1, the dot product");
  if (lookup_type > 2) return Expected("look-up type", lookup_type, "0 (float), 1 (int16) or 2 (int8)");
  if (dim != config->dim) {
    return DamagedConfig("codebooks of " + std::to_string(dim) + " dimensions, centroids of " + std::to_string(config->dim));
  }
  if (!AllFinite(config->codebooks)) return DamagedConfig("a codebook is not finite");
  config->lookup_type = static_cast<LookupType>(lookup_type);
  config->blocks = static_cast<uint32_t>(config->widths.size());
  return {};
}

Status ReadOffsets(Bytes packed, IndexConfig* config) {
  Cursor cursor(packed);
  uint32_t last = 0;
  while (cursor.remaining() > 0) {
    uint32_t offset;
    if (!cursor.Varint32(&offset) || offset < last || offset > kMaxItems) return DamagedConfig("its offsets do not ascend");
    config->partition_offsets.push_back(offset);
    last = offset;
  }
  if (config->partition_offsets.size() != config->partitions || config->partition_offsets[0] != 0) {
    return DamagedConfig("its offsets do not belong to its partitions");
  }
  return {};
}

}  // namespace

uint32_t IndexConfig::partitions_searched() const {
  // The Task Library multiplies in float and rounds up.
  const float searched = std::ceil(static_cast<float>(partitions) * search_fraction);
  if (searched >= static_cast<float>(partitions)) return partitions;
  return std::max(1u, static_cast<uint32_t>(searched));
}

Result<IndexConfig> ParseIndexConfig(Bytes message) {
  IndexConfig config;
  Parts parts;
  SF_ASSIGN_OR_RETURN(parts, Split(message));
  if (parts.distance > kDotProduct) return Expected("distance", parts.distance, "1, the dot product");
  SF_RETURN_IF_ERROR(ReadPartitioner(parts.partitioner, parts.distance, &config));
  SF_RETURN_IF_ERROR(ReadHashing(parts.hashing, parts.distance, &config));
  if (parts.code_bytes != config.blocks) {
    return DamagedConfig("codes of " + std::to_string(parts.code_bytes) + " bytes, " + std::to_string(config.blocks) + " codebooks");
  }
  SF_RETURN_IF_ERROR(ReadOffsets(parts.offsets, &config));
  return config;
}

}  // namespace searchforge
