// The TFLite metadata of a model: a flatbuffer inside the model's own.
//
// The fields of the tables are numbered by tensorflow/compiler/mlir/lite/schema/schema.fbs and
// tensorflow_lite_support/metadata/metadata_schema.fbs.
#ifndef SEARCHFORGE_MODEL_METADATA_H_
#define SEARCHFORGE_MODEL_METADATA_H_

#include <optional>

#include "model/flatbuffer.h"
#include "model/source.h"
#include "base/status.h"

namespace searchforge {

constexpr unsigned kTableWidth = 4;  // bytes of a reference to a table

// Returns the metadata of the first subgraph, which is the only one that the Task Library looks at; nothing if there is none.
Result<std::optional<FlatTable>> ReadSubgraphMetadata(const Source& source);

// Returns the first element of a vector of tables, if it has any.
Result<std::optional<FlatTable>> FirstElement(const FlatTable& table, unsigned field);

}  // namespace searchforge

#endif  // SEARCHFORGE_MODEL_METADATA_H_
