package pocketrank

import java.io.Closeable

/** H state vectors: `vectors` (H, D) in a row, `bias` (H,). */
internal class State(val vectors: FloatArray, val bias: FloatArray)

/** What a run leaves out: a segment by its place, the live events, or nothing of it. */
internal class LeftOut(val segment: Int = -1, val segments: Boolean = false, val live: Boolean = false)

/** A bundle's state graph: from a situation and a clock to H state vectors. */
internal class StateGraph(private val bundle: Bundle, engine: Engine) : Closeable {
    private val graph = engine.open(bundle, "state")
    private val runs = HashMap<List<Int>, StateRun>()

    /** One state for each of the things left out. A segment's age is that as the session began, and of its first event. */
    fun states(situation: Situation, nowUs: Long, leftOut: List<LeftOut> = ALL): List<State> {
        val sizes = bundle.sizes
        val S = if (graph.isFixed) sizes.S else filled(situation.closed.size, sizes.S)
        val L = if (graph.isFixed) sizes.L else filled(situation.live.size, sizes.L)
        if (graph.isFixed && leftOut.size > 1) return leftOut.flatMap { states(situation, nowUs, listOf(it)) }
        val run = run(leftOut.size, S, L)
        run.feed(situation, nowUs, leftOut)
        return run.states().also { if (leftOut.size > 1) run.close() }
    }

    /** The state of a golden case: every input, all of S and L, with live items as rows. */
    fun golden(inputs: Map<String, Tensor>, liveRows: IntArray): State {
        val run = run(1, bundle.sizes.S, bundle.sizes.L)
        run.feed(inputs, liveRows)
        return run.states().single()
    }

    /** Inputs of a situation, by name, as a run would have them; for tests. */
    internal fun inputs(situation: Situation, nowUs: Long): List<Tensor> =
        run(1, bundle.sizes.S, bundle.sizes.L).apply { feed(situation, nowUs, ALL) }.inputs

    /** Runs of one state stay: they are what every event needs. */
    private fun run(B: Int, S: Int, L: Int): StateRun =
        if (B == 1) runs.getOrPut(listOf(S, L)) { StateRun(1, S, L) } else StateRun(B, S, L)

    override fun close() {
        runs.values.forEach(StateRun::close)
        graph.close()
    }

    private inner class StateRun(private val B: Int, private val S: Int, private val L: Int) : Closeable {
        private val K = bundle.sizes.K
        private val D = bundle.sizes.D
        private val vectors = Tensor.zeros("vectors", Type.I8, B, S, K, D)
        private val scales = Tensor.zeros("scales", Type.F32, B, S, K)
        private val age = Tensor.zeros("age_s", Type.F32, B, S)
        private val weight = Tensor.zeros("weight", Type.F32, B, S)
        private val mask = Tensor.zeros("mask", Type.F32, B, S)
        private val liveItems = Tensor.zeros("live_items", Type.F32, B, L, D)
        private val liveBehavior = Tensor.zeros("live_behavior", Type.I32, B, L)
        private val liveAge = Tensor.zeros("live_age_s", Type.F32, B, L)
        private val liveScore = Tensor.zeros("live_score", Type.F32, B, L)
        private val liveMask = Tensor.zeros("live_mask", Type.F32, B, L)
        val inputs = listOf(
            vectors, scales, age, weight, mask, liveItems, liveBehavior, liveAge, liveScore, liveMask,
        )
        private val run = graph.bind(inputs)
        private val nothing = ByteArray(K * D)

        fun feed(situation: Situation, nowUs: Long, leftOut: List<LeftOut>) {
            val live = situation.live
            val begunUs = if (live.size > 0) minOf(live.timeUs[0], nowUs) else nowUs
            val begunS = Math.floorDiv(begunUs, MICROSECONDS)
            val sinceS = ((nowUs - begunUs) / MICROSECONDS.toDouble()).toFloat()
            val to = vectors.data.duplicate()
            to.clear()
            for (slot in 0 until S) {
                val segment = situation.closed.getOrNull(slot)
                to.put(segment?.vectors ?: nothing)
                for (k in 0 until K) scales.floats.put(slot * K + k, if (segment == null) 1f else segment.scales[k])
                val ageS = if (segment == null) 0 else maxOf(begunS - Math.floorDiv(segment.endUs, MICROSECONDS), 0)
                age.floats.put(slot, ageS.toFloat() + sinceS)
                weight.floats.put(slot, segment?.weight ?: 0f)
                mask.floats.put(slot, if (segment == null) 0f else 1f)
            }
            for (event in 0 until L) {
                val isThere = event < live.size
                if (isThere) {
                    bundle.items.embed(live.rows[event], liveItems.floats, event * D)
                } else {
                    for (at in event * D until (event + 1) * D) liveItems.floats.put(at, 0f)
                }
                val ageUs = if (isThere) maxOf(nowUs - live.timeUs[event], 0) else 0
                liveBehavior.ints.put(event, if (isThere) live.behavior[event] else 0)
                liveAge.floats.put(event, (ageUs / MICROSECONDS.toDouble()).toFloat())
                liveScore.floats.put(event, if (isThere) live.score[event] else 0f)
                liveMask.floats.put(event, if (isThere) 1f else 0f)
            }
            for (row in B - 1 downTo 0) {
                if (row > 0) inputs.forEach { repeat(it, row) }
                val without = leftOut[row]
                if (without.segments) for (slot in 0 until S) mask.floats.put(row * S + slot, 0f)
                if (without.segment >= 0) mask.floats.put(row * S + without.segment, 0f)
                if (without.live) for (event in 0 until L) liveMask.floats.put(row * L + event, 0f)
            }
        }

        fun feed(told: Map<String, Tensor>, liveRows: IntArray) {
            for (input in inputs) {
                if (input === liveItems) {
                    liveRows.forEachIndexed { event, row -> bundle.items.embed(row, liveItems.floats, event * D) }
                } else {
                    val from = told.getValue(input.name).data.duplicate()
                    input.data.duplicate().put(from)
                }
            }
        }

        fun states(): List<State> {
            val found = run.run()
            val (state, bias) = listOf("state", "state_bias").map {
                found[it] ?: throw BadBundle("${bundle.folder}: the state graph gives no $it; export the bundle again")
            }
            val H = bias.size / B
            if (state.size != B * H * D) {
                throw BadBundle("${bundle.folder}: the state graph gives $state; export the bundle again")
            }
            val vectors = state.floatArray()
            val biases = bias.floatArray()
            return List(B) {
                State(vectors.copyOfRange(it * H * D, (it + 1) * H * D), biases.copyOfRange(it * H, (it + 1) * H))
            }
        }

        /** Puts what is in the first row of an input into another. */
        private fun repeat(input: Tensor, row: Int) {
            val each = input.data.limit() / B
            val to = input.data.duplicate()
            to.position(row * each)
            to.put(Tensor.slice(input.data, 0, each))
        }

        override fun close() = run.close()
    }

    private companion object {
        val ALL = listOf(LeftOut())
    }
}
