package pocketrank

import java.io.File
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.channels.FileChannel

/**
 * A safetensors file: 8 bytes header length, a JSON header, then the tensors without gaps. Tensors are views of the
 * buffer it was read from, so a mapped file is never copied.
 *
 * @property tensors by name, those of [Type]; tensors of other types are whole, and passed over.
 * @property metadata text by name.
 */
class Safetensors private constructor(
    val tensors: Map<String, Tensor>,
    val metadata: Map<String, String>,
    private val where: String,
) {
    /**
     * Holds tensors against the shapes a format promises.
     *
     * @param wanted name to type and axis letters such as "SKD"; a letter has one size wherever it stands.
     * @param known sizes of letters that are known beforehand.
     * @return the size of each letter.
     * @throws BadTensors one is missing, or has another type or shape.
     */
    fun check(wanted: Map<String, Pair<Type, String>>, known: Map<Char, Long> = emptyMap()): Map<Char, Long> {
        val found = LinkedHashMap(known)
        for ((name, promised) in wanted) {
            val (type, axes) = promised
            val tensor = tensors[name]
                ?: throw BadTensors("$where: tensor '$name' is missing; write the file again with this version")
            val before = LinkedHashMap(found)
            axes.toList().zip(tensor.shape.asList()).forEach { (axis, size) -> found.getOrPut(axis) { size } }
            val fits = axes.length == tensor.shape.size && axes.indices.all { found[axes[it]] == tensor.shape[it] }
            if (tensor.type != type || !fits) {
                val shape = tensor.shape.joinToString()
                throw BadTensors(
                    "$where: $name is ${tensor.type.title} ($shape), wanted ${type.title} " +
                        "(${axes.toList().joinToString()}) with $before",
                )
            }
        }
        return found
    }

    operator fun get(name: String): Tensor = tensors.getValue(name)

    companion object {
        const val HEADER_MOST = 1L shl 20
        private const val AXES_MOST = 64

        /** Maps a file; it must not change while it is read. */
        fun map(file: File): ByteBuffer = RandomAccessFile(file, "r").use {
            it.channel.map(FileChannel.MapMode.READ_ONLY, 0, it.length())
        }

        /**
         * Reads a file's content.
         *
         * @param where its name, for messages.
         * @throws BadTensors truncated, altered, not safetensors at all, or with a header of more than 1 MiB.
         */
        fun read(content: ByteBuffer, where: String): Safetensors = try {
            parse(content, where)
        } catch (error: BadJson) {
            throw BadTensors("$where: not a whole safetensors file (${oneLine(error.message)}); fetch or write it again")
        }

        private fun parse(content: ByteBuffer, where: String): Safetensors {
            val total = content.limit().toLong()
            val size = if (total < 8) -1 else Tensor.slice(content, 0, 8).getLong(0)
            if (size < 0 || size > total - 8) throw BadJson("a header of $size bytes in a file of $total")
            val header = Json.read(Tensor.slice(content, 8, size.toInt()), HEADER_MOST, deepest = 3)
            if (header !is Map<*, *> || content.get(8) != '{'.code.toByte()) throw BadJson("the header is not an object")
            val body = Tensor.slice(content, 8 + size.toInt(), (total - 8 - size).toInt())
            val entries = header.filterKeys { it != METADATA }.map { (name, entry) -> Entry.of(name as String, entry) }
            var end = 0L
            val tensors = LinkedHashMap<String, Tensor>()
            for (entry in entries.sortedWith(compareBy({ it.begin }, { it.end }))) {
                if (entry.begin != end || entry.end != end + entry.bytes) throw BadJson("offsets of '${entry.name}'")
                end = entry.end
                if (end > body.limit()) throw BadJson("'${entry.name}' is beyond the file's end")
                val type = Type.entries.find { it.name == entry.type } ?: continue
                val data = Tensor.slice(body, entry.begin.toInt(), entry.bytes.toInt())
                tensors[entry.name] = Tensor(entry.name, type, entry.shape, data)
            }
            if (end != body.limit().toLong()) throw BadJson("bytes that belong to no tensor")
            return Safetensors(tensors, metadata(header[METADATA]), where)
        }

        private fun metadata(found: Any?): Map<String, String> {
            if (found == null) return emptyMap()
            if (found !is Map<*, *>) throw BadJson("the metadata are not an object")
            return found.entries.associate { (name, value) ->
                name as String to (value as? String ?: throw BadJson("metadata '$name' are no text"))
            }
        }

        private const val METADATA = "__metadata__"
        private val BYTES = mapOf(
            "BOOL" to 1, "I8" to 1, "U8" to 1, "I16" to 2, "U16" to 2, "F16" to 2, "BF16" to 2,
            "I32" to 4, "U32" to 4, "F32" to 4, "I64" to 8, "U64" to 8, "F64" to 8, "C64" to 8,
        )

        /** One tensor, as the header tells of it; `begin`, `end` and `bytes` within the body. */
        private class Entry(val name: String, val type: String, val shape: LongArray, val begin: Long, val end: Long) {
            val bytes: Long = try {
                shape.fold(BYTES.getValue(type).toLong()) { product, size -> Math.multiplyExact(product, size) }
            } catch (_: ArithmeticException) {
                throw BadJson("the shape of '$name' overflows")
            }

            companion object {
                fun of(name: String, told: Any?): Entry {
                    val entry = told as? Map<*, *> ?: throw BadJson("'$name' is not an object")
                    val type = entry["dtype"] as? String
                    if (type !in BYTES) throw BadJson("'$name' is of an unknown type")
                    val shape = sizes(entry["shape"])
                    val offsets = sizes(entry["data_offsets"])
                    if (shape == null || shape.size > AXES_MOST) throw BadJson("the shape of '$name'")
                    if (offsets?.size != 2) throw BadJson("offsets of '$name'")
                    return Entry(name, type!!, shape, offsets[0], offsets[1])
                }

                private fun sizes(found: Any?): LongArray? {
                    if (found !is List<*> || !found.all { it is Long && it >= 0 }) return null
                    return LongArray(found.size) { found[it] as Long }
                }
            }
        }
    }
}
