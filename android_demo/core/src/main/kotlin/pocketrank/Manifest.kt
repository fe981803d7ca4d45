package pocketrank

/** Of the core; what a bundle's `least_runtime` is held against. */
const val VERSION = "0.1.0"
const val BUNDLE_FORMAT = "pocketrank.bundle/1"

/**
 * Axis lengths of a bundle's graphs: S segments, K vectors a segment, L events of a segment, D width, H state vectors,
 * I items, F remembered items, T top items of a segment, `encoderBatch` segments at once offline, `scoreChunk`
 * candidates that the TFLite score graph takes at once.
 */
@Suppress("ConstructorParameterNaming")
class Sizes(
    val S: Int,
    val K: Int,
    val L: Int,
    val D: Int,
    val H: Int,
    val I: Int,
    val F: Int,
    val T: Int,
    val encoderBatch: Int,
    val scoreChunk: Int,
)

/** `manifest.json` as far as a device reads it; see docs/formats.md, "Bundle". */
class Manifest private constructor(
    val modelId: String,
    val encoderId: String,
    val sizes: Sizes,
    val behaviors: List<String>,
    val weights: Map<String, Double>,
    val policy: Policy,
    val compaction: Compaction,
    val latenessS: Long,
    val fusion: String,
    val memoryHalfLifeS: Double,
    val files: Map<String, Map<String, Any?>>,
    val parity: Map<String, Any?>,
    val variant: String,
) {
    private val placeOf = behaviors.withIndex().associate { (place, name) -> name to place }

    /** Place of a behaviour in the list; 0 stands for one that training never saw. */
    fun behaviorId(name: String): Int = placeOf[name] ?: 0

    companion object {
        private const val AGAIN = "export the bundle again"
        private const val PRINTABLE_MOST = 64
        private val KNOWN = setOf(
            "format", "model_id", "encoder_id", "least_runtime", "sizes", "behaviors", "weights", "policy", "compaction",
            "lateness_s", "fusion", "memory_half_life_s", "files", "quality", "parity", "variant", "graphs",
        )
        private val OPTIONAL = setOf("quality", "parity", "variant", "graphs")
        private val SIZES = listOf("S", "K", "L", "D", "H", "I", "F", "T", "encoder_batch", "score_chunk")

        /** Elements that an array of these axes has at most, so that hostile sizes take no more memory than 200 MB. */
        private val PRODUCTS = mapOf(
            listOf("S", "K", "D") to (1L shl 22),
            listOf("S", "T") to (1L shl 20),
            listOf("L", "D") to (1L shl 20),
            listOf("H", "D") to (1L shl 22),
            listOf("F") to (1L shl 20),
            listOf("score_chunk", "D") to (1L shl 24),
            listOf("encoder_batch", "L", "D") to (1L shl 26),
        )

        /**
         * Reads a manifest.
         *
         * @param where its path, for messages. @param folder the bundle's.
         * @throws BadBundle not JSON, another format, made for a newer pocketrank, or entries that cannot be.
         */
        fun read(content: ByteArray, where: String, folder: String): Manifest {
            val found = try {
                Json.read(content, BundleFiles.MANIFEST_MOST, deepest = 16)
            } catch (error: BadJson) {
                throw BadBundle("$where: not JSON (${oneLine(error.message)}); fetch or $AGAIN")
            }
            if (found !is Map<*, *>) throw BadBundle("$where: not JSON (not an object); fetch or $AGAIN")
            if (found["format"] != BUNDLE_FORMAT) {
                throw BadBundle(
                    "$where: format is ${shown(found["format"])}, this version reads '$BUNDLE_FORMAT'; update pocketrank " +
                        "or export again",
                )
            }
            checkRuntime(where, found["least_runtime"])
            return try {
                @Suppress("UNCHECKED_CAST")
                parse(Entries(found as Map<String, Any?>, where), folder)
            } catch (error: BadInput) {
                throw error as? BadBundle ?: BadBundle("${oneLine(error.message)}; $AGAIN")
            }
        }

        private fun parse(entries: Entries, folder: String): Manifest {
            entries.knowOnly(KNOWN, OPTIONAL)
            val modelId = entries.name("model_id")
            val encoderId = entries.name("encoder_id")
            val fusion = entries.name("fusion")
            entries.text("least_runtime")
            val behaviors = entries.typed<List<*>>("behaviors", "list").mapIndexed { place, name ->
                name as? String ?: throw BadInput("${entries.where} behaviors[$place]: found ${shown(name)}, wanted str")
            }
            entries.hold("behaviors", behaviors.isNotEmpty() && behaviors.toSet().size == behaviors.size) {
                "different names, the first for unknown ones"
            }
            val weights = Entries(entries.mapping("weights"), "${entries.where} weights").let { told ->
                told.values.keys.associateWith(told::number)
            }
            for ((name, weight) in weights) {
                if (weight !in 0.0..MOST) {
                    throw BadInput("${entries.where} weights $name: found ${shown(weight)}, wanted 0 to 1e+12")
                }
            }
            val latenessS = entries.integer("lateness_s")
            entries.hold("lateness_s", latenessS in 0 until LAST_S) { "0 or more seconds, below the year 10000" }
            val halfLifeS = entries.number("memory_half_life_s")
            if (halfLifeS !in 1e-6..1e30) {
                throw BadInput("${entries.where} memory_half_life_s: found ${shown(halfLifeS)}, wanted 1e-06 to 1e+30")
            }
            val files = Entries(entries.mapping("files"), "${entries.where} files").let { told ->
                told.values.keys.associateWith(told::mapping)
            }
            entries.mapping("quality")
            Entries(entries.mapping("graphs"), "${entries.where} graphs").let { it.values.keys.forEach(it::mapping) }
            val sizes = sizes(Entries(entries.mapping("sizes"), "${entries.where} sizes"))
            val policy = Policy.of(entries.mapping("policy"))
            val compaction = Compaction.of(entries.mapping("compaction"), sizes.S)
            if (policy.maxEvents > sizes.L) {
                throw BadBundle(
                    "$folder: segments hold up to ${policy.maxEvents} events, the encoder takes ${sizes.L}; $AGAIN",
                )
            }
            ((policy as? Milestone)?.behaviors.orEmpty() - behaviors.toSet()).firstOrNull()?.let {
                throw BadBundle("$folder: ${shown(it)} is to close segments and is not among its behaviours; $AGAIN")
            }
            return Manifest(
                modelId, encoderId, sizes, behaviors, weights, policy, compaction, latenessS, fusion, halfLifeS, files,
                entries.mapping("parity"), if ("variant" in entries.values) entries.text("variant") else "fp32",
            )
        }

        private fun sizes(entries: Entries): Sizes {
            entries.knowOnly(SIZES.toSet(), emptySet())
            for (name in SIZES) entries.hold(name, entries.integer(name) >= 1) { "1 or more" }
            for ((axes, most) in PRODUCTS) {
                val product = axes.fold(1.toBigInteger()) { product, axis -> product * entries.integer(axis).toBigInteger() }
                if (product > most.toBigInteger()) {
                    throw BadInput("${entries.where} ${axes.joinToString(" x ")}: found $product, wanted at most $most")
                }
            }
            entries.hold("I", entries.integer("I") <= Int.MAX_VALUE) { "at most ${Int.MAX_VALUE}" }
            fun size(name: String) = entries.integer(name).toInt()
            return Sizes(
                size("S"), size("K"), size("L"), size("D"), size("H"), size("I"), size("F"), size("T"),
                size("encoder_batch"), size("score_chunk"),
            )
        }

        /** Refuses a bundle made for a newer version before its other entries are read: some may be new, too. */
        private fun checkRuntime(where: String, least: Any?) {
            if (least == null) return
            val wanted = version(least) ?: throw BadBundle(
                "$where least_runtime: found ${shown(least)}, wanted a version such as $VERSION; $AGAIN",
            )
            val own = version(VERSION)!!
            val newer = wanted.zip(own).firstOrNull { (theirs, ours) -> theirs != ours } ?: return
            if (newer.first > newer.second) {
                throw BadBundle("$where: wants pocketrank $least or newer, this is $VERSION; update pocketrank")
            }
        }

        private fun version(text: Any?): List<Int>? =
            Regex("([0-9]{1,6})\\.([0-9]{1,6})\\.([0-9]{1,6})").matchEntire(text as? String ?: "")
                ?.groupValues?.drop(1)?.map(String::toInt)

        /** An object of the manifest, and what its entries have to be. */
        private class Entries(val values: Map<String, Any?>, val where: String) {
            fun knowOnly(known: Set<String>, optional: Set<String>) {
                (values.keys - known).firstOrNull()?.let {
                    throw BadInput("$where: unknown key ${shown(it)}; known are ${known.sorted().joinToString()}")
                }
                (known - optional - values.keys).firstOrNull()?.let { throw BadInput("$where: key '$it' is missing") }
            }

            inline fun <reified T> typed(name: String, kind: String): T =
                values[name] as? T ?: throw BadInput("$where $name: found ${shown(values[name])}, wanted $kind")

            fun text(name: String): String = typed(name, "str")

            fun integer(name: String): Long = typed(name, "int")

            fun number(name: String): Double = (values[name] as? Long)?.toDouble() ?: typed(name, "float")

            @Suppress("UNCHECKED_CAST")
            fun mapping(name: String): Map<String, Any?> =
                if (name in values) typed<Map<*, *>>(name, "Mapping") as Map<String, Any?> else emptyMap()

            fun name(name: String): String {
                val found = text(name)
                val fits = found.isNotEmpty() && found.codePointCount(0, found.length) <= PRINTABLE_MOST
                hold(name, fits && found.all(::isPrintable)) { "up to 64 printable characters" }
                return found
            }

            fun hold(name: String, fits: Boolean, wanted: () -> String) {
                if (!fits) throw BadInput("$where $name: found ${shown(values[name])}, wanted ${wanted()}")
            }
        }
    }
}
