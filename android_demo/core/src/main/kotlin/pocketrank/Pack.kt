package pocketrank

import java.nio.ByteBuffer

/** A time in microseconds since 1970, and how many of the user's events at that very time are counted. */
data class Through(val timeUs: Long, val events: Long)

/** A pack's version: a phone keeps the greater one. */
data class PackVersion(val generation: Long, val closedAtUs: Long) : Comparable<PackVersion> {
    override fun compareTo(other: PackVersion) = compareValuesBy(this, other, { it.generation }, { it.closedAtUs })
}

/**
 * One user's closed segments and item memory: what the phone syncs. `pocketrank.pack/1`, see docs/formats.md.
 *
 * @property through the last event that it covers.
 * @property segments filled slots only, oldest first, times in whole seconds.
 * @property width D. @property each K.
 * @property recentUs times of the last events covered, as many as the policy looks back; none with most policies.
 */
class Pack private constructor(
    val encoderId: String,
    val version: PackVersion,
    val through: Through,
    val segments: List<Segment>,
    val memory: ItemMemory,
    val recentUs: LongArray,
    val each: Int,
    val width: Int,
    val topItems: Int,
) {
    /** The greatest vocabulary row in it; -1 for none. */
    val lastRow: Int = maxOf(memory.items.maxOrNull() ?: -1, segments.maxOfOrNull { it.topItems.maxOrNull() ?: -1 } ?: -1)

    companion object {
        const val FORMAT = "pocketrank.pack/1"
        const val LARGEST = 1L shl 24
        private const val ID_MOST = 64
        private val TENSORS = mapOf(
            "vectors" to (Type.I8 to "SKD"),
            "scales" to (Type.F32 to "SK"),
            "start_s" to (Type.I64 to "S"),
            "end_s" to (Type.I64 to "S"),
            "weight" to (Type.F32 to "S"),
            "n_events" to (Type.I32 to "S"),
            "level" to (Type.I8 to "S"),
            "ordinal_first" to (Type.I32 to "S"),
            "ordinal_last" to (Type.I32 to "S"),
            "top_items" to (Type.I32 to "ST"),
            "memory_items" to (Type.I32 to "F"),
            "memory_counts" to (Type.F32 to "F"),
            "memory_decayed" to (Type.F32 to "F"),
            "memory_first_s" to (Type.I64 to "F"),
            "memory_last_s" to (Type.I64 to "F"),
        )
        private val ORDERED =
            listOf("start_s" to "end_s", "memory_first_s" to "memory_last_s", "ordinal_first" to "ordinal_last")

        /**
         * Reads a pack.
         *
         * @param where its name, for messages.
         * @throws BadPack too large, truncated, of another format, or with a tensor or a value that cannot be.
         */
        fun read(content: ByteArray, where: String): Pack {
            if (content.size > LARGEST) {
                throw BadPack("$where: ${content.size} bytes, a pack has at most $LARGEST; sync again")
            }
            val file = try {
                Safetensors.read(ByteBuffer.wrap(content), where)
            } catch (error: BadTensors) {
                throw BadPack(error.message!!)
            }
            val format = file.metadata["format"] ?: "no format"
            if (format != FORMAT) {
                throw BadPack("$where: found ${oneLine(format)}, wanted $FORMAT; sync with a server of this version")
            }
            val sizes = try {
                file.check(TENSORS)
            } catch (error: BadTensors) {
                throw BadPack(error.message!!)
            }
            checkValues(file, where)
            return of(file, sizes, where)
        }

        /** Refuses what would turn scores into NaN or be looked up wrongly; damage that keeps the shapes shows here. */
        private fun checkValues(file: Safetensors, where: String) {
            for ((name, promised) in TENSORS) {
                if (promised.first == Type.F32 && !file[name].floatArray().all { it >= 0 && it <= MOST }) {
                    throw BadPack("$where: $name has a value that is negative, not finite or over 1e+12; sync again")
                }
                if (promised.first == Type.I64 && !file[name].longArray().all { it in (1 - LAST_S) until LAST_S }) {
                    throw BadPack("$where: $name has a time after the year 9999; sync again")
                }
            }
            val rows = file["memory_items"].intArray()
            val isAscending = { name: String, ok: Boolean ->
                if (!ok) throw BadPack("$where: $name is not in ascending order; sync again")
            }
            isAscending("end_s", file["end_s"].longArray().asList().zipWithNext().all { (a, b) -> a <= b })
            isAscending("memory_items", rows.asList().zipWithNext().all { (a, b) -> a < b })
            if (rows.any { it < 0 } || file["top_items"].intArray().any { it < -1 }) {
                throw BadPack("$where: an item's row is negative; sync again")
            }
            if (file["memory_counts"].floatArray().any { it < 1 }) {
                throw BadPack("$where: an item is remembered for no event; sync again")
            }
            if (file["n_events"].intArray().any { it < 1 }) throw BadPack("$where: a segment holds no event; sync again")
            for ((first, last) in ORDERED) {
                if (integers(file[first]).zip(integers(file[last])).any { (a, b) -> a > b }) {
                    throw BadPack("$where: $first is after $last; sync again")
                }
            }
            for (name in listOf("level", "ordinal_first")) {
                if (integers(file[name]).any { it < 0 }) throw BadPack("$where: $name is negative; sync again")
            }
        }

        private fun integers(tensor: Tensor): List<Long> = when (tensor.type) {
            Type.I8 -> tensor.byteArray().map(Byte::toLong)
            Type.I32 -> tensor.intArray().map(Int::toLong)
            else -> tensor.longArray().asList()
        }

        private fun of(file: Safetensors, sizes: Map<Char, Long>, where: String): Pack {
            val told = file.metadata
            val damaged = { what: String -> BadPack("$where: metadata is damaged (${oneLine(what)}); sync again") }
            val entry = { name: String -> told[name] ?: throw damaged("'$name'") }
            val integer = { text: String ->
                text.takeIf { INTEGER.matches(it) }?.toLongOrNull()
                    ?: throw damaged("${shown(text)} is not an integer of 64 bits")
            }
            val pair = { name: String ->
                val numbers = entry(name).split(",")
                if (numbers.size != 2) throw damaged("$name is ${shown(entry(name))}, not two numbers")
                integer(numbers[0]) to integer(numbers[1])
            }
            val (generation, closedAtUs) = pair("version")
            val (timeUs, events) = pair("through")
            val recent = told["recent"].orEmpty()
            val recentUs = if (recent.isEmpty()) emptyList() else recent.split(",").map(integer)
            val said = "through is ${told["through"]}" + if (recent.isEmpty()) "" else ", recent $recent"
            val lastUs = LAST_S * MICROSECONDS
            if (events < 0 || (recentUs + timeUs).any { it <= -lastUs || it >= lastUs }) throw damaged(said)
            if ((recentUs + timeUs).zipWithNext().any { (a, b) -> a > b }) throw damaged("$said: not in ascending order")
            val encoderId = entry("encoder_id")
            val length = encoderId.codePointCount(0, encoderId.length)
            if (length !in 1..ID_MOST || !encoderId.all(::isPrintable)) {
                throw damaged("encoder_id is '${encoderId.replace("\n", "\\n")}'")
            }
            val (each, width, top) = listOf('K', 'D', 'T').map { sizes.getValue(it).toInt() }
            return Pack(
                encoderId, PackVersion(generation, closedAtUs), Through(timeUs, events),
                segments(file, each, width, top), memory(file), recentUs.toLongArray(), each, width, top,
            )
        }

        private fun segments(file: Safetensors, each: Int, width: Int, top: Int): List<Segment> {
            val vectors = file["vectors"].byteArray()
            val scales = file["scales"].floatArray()
            val topItems = file["top_items"].intArray()
            val size = each * width
            return List(file["level"].size) {
                Segment(
                    vectors.copyOfRange(it * size, (it + 1) * size),
                    scales.copyOfRange(it * each, (it + 1) * each),
                    file["start_s"].longs.get(it) * MICROSECONDS,
                    file["end_s"].longs.get(it) * MICROSECONDS,
                    file["weight"].floats.get(it),
                    file["n_events"].ints.get(it).toLong(),
                    file["ordinal_first"].ints.get(it).toLong(),
                    file["ordinal_last"].ints.get(it).toLong(),
                    file["level"].data.get(it).toInt(),
                    topItems.copyOfRange(it * top, (it + 1) * top),
                )
            }
        }

        private fun memory(file: Safetensors): ItemMemory {
            fun doubles(name: String) = file[name].floatArray().let { DoubleArray(it.size) { at -> it[at].toDouble() } }
            return ItemMemory(
                file["memory_items"].intArray(), doubles("memory_counts"), doubles("memory_decayed"),
                file["memory_first_s"].longArray(), file["memory_last_s"].longArray(),
            )
        }

        private val INTEGER = Regex("-?[0-9]{1,19}")
    }
}
