package pocketrank

import java.io.File
import java.nio.ByteBuffer

/**
 * The item table; row = place in the vocabulary.
 *
 * @property ids I item ids, as the log had them.
 * @property vectors (I, D) int8, mapped. @property scales (I,). @property bias (I,).
 * @property unknown (D,) float32, stands for an item that the vocabulary lacks.
 */
class Items(
    val ids: List<ItemId>,
    val vectors: Tensor,
    val scales: FloatArray,
    val bias: FloatArray,
    val popularity: FloatArray,
    val unknown: FloatArray,
) {
    private val rowOf: Map<ItemId, Int> = HashMap<ItemId, Int>(ids.size * 2).also { rows ->
        ids.forEachIndexed { row, id -> rows[id] = row }
    }

    /** (I,) place of each row's id among all: items of equal score rank by it. */
    val order: IntArray = IntArray(ids.size).also { order ->
        val best = ids.indices.sortedWith { one, other -> ids[one].compareTo(ids[other]) }
        best.forEachIndexed { place, row -> order[row] = place }
    }

    /** Vocabulary row of an item; -1 where the vocabulary lacks it. */
    fun row(item: ItemId): Int = rowOf[item] ?: -1

    /** Writes an item's vector, (D,) as the graphs read it, from `at` on; `row` -1 is an unknown item. */
    fun embed(row: Int, into: java.nio.FloatBuffer, at: Int) {
        val width = unknown.size
        for (d in 0 until width) {
            into.put(at + d, if (row < 0) unknown[d] else vectors.data.get(row * width + d) * scales[row])
        }
    }
}

/**
 * An opened bundle: manifest and item table; the graphs are files for an [Engine] to open.
 *
 * @property attributes what it says of its items beside their vectors.
 */
class Bundle private constructor(
    val folder: File,
    val manifest: Manifest,
    val items: Items,
    val attributes: Attributes,
) {
    val sizes: Sizes get() = manifest.sizes

    companion object {
        private const val IDS = "item_ids.json"
        private const val TABLE = "items.safetensors"
        private val TENSORS = mapOf(
            "vectors" to (Type.I8 to "ID"),
            "scales" to (Type.F32 to "I"),
            "bias" to (Type.F32 to "I"),
            "popularity" to (Type.F32 to "I"),
            "unknown_vector" to (Type.I8 to "D"),
            "unknown_scale" to (Type.F32 to "1"),
        )

        /**
         * Opens a bundle: checks signature, manifest, every file against it, and the item table, in this order.
         *
         * @param key that must have signed it; null asks for none.
         * @throws BadBundle no bundle there, not signed with that key, another format, made for a newer pocketrank, a
         *   file missing, altered, not named or not a regular one, or numbers that disagree or cannot be.
         */
        fun open(folder: File, key: PinnedKey? = null): Bundle {
            val files = BundleFiles(folder)
            val content = files.manifest()
            if (key != null) files.checkSignature(content, key)
            val manifest = Manifest.read(content, File(folder, BundleFiles.MANIFEST).path, folder.path)
            val sizes = manifest.sizes
            val table = 8.toBigInteger() * (sizes.I + 1L).toBigInteger() * (sizes.D + 3L).toBigInteger()
            val most = mapOf(
                IDS to 256L * sizes.I + 64,
                TABLE to (table + Safetensors.HEADER_MOST.toBigInteger()).min(Long.MAX_VALUE.toBigInteger()).toLong(),
                Attributes.FILE to Attributes.BYTES_AN_ITEM * sizes.I,
            )
            val optional = setOf(Attributes.FILE).intersect(manifest.files.keys)
            val kept = files.check(manifest.files, setOf(IDS, TABLE) + optional, most)
            val items = items(folder, kept)
            val attributes = kept[Attributes.FILE]?.let { Attributes.read(it, sizes.I, File(folder, Attributes.FILE).path) }
            checkTable(folder, items, sizes)
            return Bundle(folder, manifest, items, attributes ?: Attributes.NONE)
        }

        private fun items(folder: File, content: Map<String, ByteBuffer>): Items {
            val where = File(folder, TABLE).path
            val table = try {
                Safetensors.read(content.getValue(TABLE), where).apply { check(TENSORS, mapOf('1' to 1L)) }
            } catch (error: BadTensors) {
                throw BadBundle("$folder: ${error.message}")
            }
            for ((name, promised) in TENSORS) {
                if (promised.first != Type.F32) continue
                val least = if (name == "bias") -MOST else 0.0
                if (!table[name].floatArray().all { it >= least && it <= MOST }) {
                    val from = if (least == 0.0) "0e+00" else "-1e+12"
                    throw BadBundle(
                        "$where: $name has a value that is not finite or not from $from to 1e+12; export the bundle again",
                    )
                }
            }
            val ids = ids(folder, content.getValue(IDS))
            val scale = table["unknown_scale"].floats.get(0)
            val unknown = table["unknown_vector"].byteArray().let { vector -> FloatArray(vector.size) { vector[it] * scale } }
            val (scales, bias, popularity) = listOf("scales", "bias", "popularity").map { table[it].floatArray() }
            return Items(ids, table["vectors"], scales, bias, popularity, unknown)
        }

        /** Holds the manifest's sizes against the item table. */
        private fun checkTable(folder: File, items: Items, sizes: Sizes) {
            val ids = items.ids
            val vectors = items.vectors
            if (ids.size != sizes.I || vectors[0] != sizes.I || vectors[1] != sizes.D) {
                throw BadBundle(
                    "$folder: ${ids.size} ids and item vectors (${vectors[0]}, ${vectors[1]}), the manifest says " +
                        "I=${sizes.I}, D=${sizes.D}; export the bundle again",
                )
            }
        }

        private fun ids(folder: File, content: ByteBuffer): List<ItemId> {
            var why = ""
            val found = try {
                Json.read(content, content.remaining().toLong(), deepest = 1) as? List<*>
            } catch (error: BadJson) {
                why = " (${oneLine(error.message)})"
                null
            }
            val ids = found?.mapNotNull(ItemId::ofJson)
            if (ids == null || ids.size != found.size || ids.toHashSet().size != ids.size) {
                throw BadBundle("$folder: item_ids.json is not a list of different strings or integers$why; export it again")
            }
            return ids
        }
    }
}
