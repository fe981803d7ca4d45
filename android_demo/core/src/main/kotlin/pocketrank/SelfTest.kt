package pocketrank

import java.io.File

/**
 * How an engine on this machine compares with the golden outputs, which the framework that trained the model gave.
 *
 * @property cases golden cases. @property maxAbsDiff greatest difference of any output.
 * @property excess greatest difference over its limit, 1e-5 * max(1, |value|); fine up to [limit].
 * @property orderSame cases whose best 20 are in the same order, passing over swaps of scores closer than 2e-5.
 * @property limit above 1 for graphs of fewer bits, whose order is not held.
 */
class Parity(val cases: Int, val maxAbsDiff: Double, val excess: Double, val orderSame: Int, val limit: Double) {
    /** Whether the engine may be trusted with this bundle. */
    val ok: Boolean get() = cases > 0 && excess <= limit && (orderSame == cases || limit > 1)

    override fun toString() = "$orderSame of $cases cases in the same order, off by at most $maxAbsDiff"
}

/** Runs a bundle's golden cases. */
class SelfTest(private val bundle: Bundle, private val engine: Engine) {
    private var maxAbsDiff = 0.0
    private var excess = 0.0

    /** @throws BadTensors the golden file is damaged, or was made for other sizes. */
    fun run(): Parity {
        val where = File(bundle.folder, "golden.safetensors")
        if (!where.isFile) throw BadTensors("$where: no such file; check the path")
        val golden = Safetensors.read(Safetensors.map(where), where.path)
        golden.check(TENSORS, letters(bundle.sizes))
        for ((name, least) in listOf("encoder.rows" to -1, "state.live_rows" to -1, "score.rows" to 0)) {
            val rows = golden[name].intArray()
            if (rows.isEmpty() || rows.any { it < least || it >= bundle.sizes.I }) {
                throw BadTensors("$where: $name has none, or not of this bundle's ${bundle.sizes.I} items; export it again")
            }
        }
        checkEncoder(golden)
        val cases = golden["score.scores"][0]
        val orderSame = checkScores(golden, cases)
        return Parity(cases, maxAbsDiff, excess, orderSame, limit())
    }

    private fun checkEncoder(golden: Safetensors) = Encoder(bundle, engine).use { encoder ->
        for (case in 0 until golden["encoder.rows"][0]) {
            val others = listOf("gap_s", "score", "mask").associateWith { floats(golden, "encoder.$it", case) }
            val found = encoder.encodeGolden(ints(golden, "encoder.rows", case), ints(golden, "encoder.behavior", case), others)
            compare(found, floats(golden, "encoder.vectors", case))
        }
    }

    private fun checkScores(golden: Safetensors, cases: Int): Int {
        val candidates = Candidates.of(bundle, golden["score.rows"].intArray())
        val inputs = TENSORS.keys.filter { it.startsWith("state.") && it !in OUTPUTS && it != "state.live_rows" }
        return StateGraph(bundle, engine).use { graph ->
            Scorer(bundle, engine).use { scorer ->
                (0 until cases).count { case ->
                    val fed = inputs.associate { name -> name.removePrefix("state.") to golden[name].part(case, 1) }
                    val state = graph.golden(fed, ints(golden, "state.live_rows", case))
                    compare(state.vectors, floats(golden, "state.state", case))
                    compare(state.bias, floats(golden, "state.state_bias", case))
                    val wanted = floats(golden, "score.scores", case)
                    val found = scores(golden, case, candidates, state, scorer, wanted)
                    compare(found, wanted)
                    isSameOrder(found, wanted)
                }
            }
        }
    }

    /** From this engine's own state: errors add up as they would in an app. Of two ways to score, the worse one. */
    private fun scores(
        golden: Safetensors,
        case: Int,
        candidates: Candidates,
        state: State,
        scorer: Scorer,
        wanted: FloatArray,
    ): FloatArray {
        val remembered = ints(golden, "score.memory_rows", case)
        val features = floats(golden, "score.memory", case)
        val there = remembered.indices.filter { remembered[it] in 0 until bundle.sizes.I }
        val rows = IntArray(there.size) { remembered[there[it]] }
        val table = FloatArray(4 * there.size) { features[4 * there[it / 4] + it % 4] }
        val added = FloatArray(bundle.sizes.I)
        scorer.added(rows, table).forEachIndexed { place, value -> added[rows[place]] = value }
        val found = FloatArray(wanted.size).also { scorer.scores(candidates, state, added).duplicate().get(it) }
        val whole = scorer.catalogueScores(state, added) ?: return found
        return FloatArray(found.size) {
            val other = whole[candidates.rows[it]]
            if (Math.abs(other - wanted[it]) > Math.abs(found[it] - wanted[it])) other else found[it]
        }
    }

    private fun compare(found: FloatArray, wanted: FloatArray) {
        if (found.size != wanted.size) throw BadBundle("${bundle.folder}: ${found.size} outputs, wanted ${wanted.size}")
        for (at in found.indices) {
            val difference = Math.abs(found[at] - wanted[at]).toDouble().let { if (it.isNaN()) Double.MAX_VALUE else it }
            maxAbsDiff = maxOf(maxAbsDiff, difference)
            excess = maxOf(excess, difference / (LIMIT * maxOf(1f, Math.abs(wanted[at]))))
        }
    }

    private fun isSameOrder(found: FloatArray, wanted: FloatArray): Boolean {
        val (ours, theirs) = listOf(found, wanted).map { x ->
            x.indices.sortedWith { one, other -> (-x[one]).compareTo(-x[other]) }.take(TOP)
        }
        return ours.indices.all { ours[it] == theirs[it] || Math.abs(wanted[ours[it]] - wanted[theirs[it]]) < TIE }
    }

    /** 1 for float32 graphs; for others twice the greatest excess that any engine had when they were exported. */
    private fun limit(): Double {
        if (bundle.manifest.variant == "fp32") return 1.0
        val told = bundle.manifest.parity.values.mapNotNull { ((it as? Map<*, *>)?.get("excess") as? Number)?.toDouble() }
        return maxOf(1.0, 2 * (told.maxOrNull() ?: 0.0))
    }

    private companion object {
        const val TOP = 20
        const val LIMIT = 1e-5
        const val TIE = 2e-5f
        val OUTPUTS = setOf("state.state", "state.state_bias")

        // C cases of the encoder, B of the others, R candidates, M remembered; the other letters as in `Sizes`.
        val TENSORS = mapOf(
            "encoder.rows" to (Type.I32 to "CL"),
            "encoder.behavior" to (Type.I32 to "CL"),
            "encoder.gap_s" to (Type.F32 to "CL"),
            "encoder.score" to (Type.F32 to "CL"),
            "encoder.mask" to (Type.F32 to "CL"),
            "encoder.vectors" to (Type.F32 to "CKD"),
            "state.vectors" to (Type.I8 to "BSKD"),
            "state.scales" to (Type.F32 to "BSK"),
            "state.age_s" to (Type.F32 to "BS"),
            "state.weight" to (Type.F32 to "BS"),
            "state.mask" to (Type.F32 to "BS"),
            "state.live_rows" to (Type.I32 to "BL"),
            "state.live_behavior" to (Type.I32 to "BL"),
            "state.live_age_s" to (Type.F32 to "BL"),
            "state.live_score" to (Type.F32 to "BL"),
            "state.live_mask" to (Type.F32 to "BL"),
            "state.state" to (Type.F32 to "BHD"),
            "state.state_bias" to (Type.F32 to "BH"),
            "score.rows" to (Type.I32 to "R"),
            "score.memory_rows" to (Type.I32 to "BM"),
            "score.memory" to (Type.F32 to "BM4"),
            "score.scores" to (Type.F32 to "BR"),
        )

        fun letters(sizes: Sizes): Map<Char, Long> = mapOf(
            'S' to sizes.S, 'K' to sizes.K, 'L' to sizes.L, 'D' to sizes.D, 'H' to sizes.H, 'I' to sizes.I,
            'T' to sizes.T, '4' to 4,
        ).mapValues { it.value.toLong() }

        fun ints(file: Safetensors, name: String, case: Int) = file[name].part(case, 1).intArray()

        fun floats(file: Safetensors, name: String, case: Int) = file[name].part(case, 1).floatArray()
    }
}
