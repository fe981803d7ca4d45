package pocketrank

import java.io.Closeable
import java.nio.FloatBuffer

/**
 * Items to choose from, looked up once.
 *
 * @property rows vocabulary rows, of which the first `size` count; the rest fills buffers up.
 */
class Candidates internal constructor(
    internal val bundle: Bundle,
    internal val rows: IntArray,
    internal val vectors: Tensor,
    internal val scales: Tensor,
    size: Int,
) {
    /** How many they are. */
    var size = size
        internal set

    internal companion object {
        private const val STEP = 64

        /** Room for so many, and a few more, so that lists of like lengths share their buffers. */
        fun room(bundle: Bundle, most: Int): Candidates {
            val room = (most + STEP - 1) / STEP * STEP
            val vectors = Tensor.zeros("candidates", Type.I8, room, bundle.sizes.D)
            return Candidates(bundle, IntArray(room), vectors, Tensor.zeros("scales", Type.F32, room), 0)
        }

        /** Those of some vocabulary rows, in this order. */
        fun of(bundle: Bundle, rows: IntArray): Candidates = room(bundle, rows.size).apply { rows.forEach(::add) }

        /** The whole catalogue; its vectors are those of the file. */
        fun all(bundle: Bundle): Candidates {
            val items = bundle.items
            val scales = Tensor.zeros("scales", Type.F32, items.scales.size)
            scales.floats.duplicate().put(items.scales)
            val rows = IntArray(items.ids.size) { it }
            return Candidates(bundle, rows, items.vectors.named("candidates"), scales, rows.size)
        }
    }

    internal fun add(row: Int) {
        val width = vectors[1]
        val from = bundle.items.vectors.data
        for (d in 0 until width) vectors.data.put(size * width + d, from.get(row * width + d))
        scales.floats.put(size, bundle.items.scales[row])
        rows[size++] = row
    }
}

/** What scores the items of a bundle: its graphs `memory`, `score` and, where it has it, `catalogue`. */
internal class Scorer(private val bundle: Bundle, private val engine: Engine) : Closeable {
    private val score = engine.open(bundle, "score")
    private val memory = engine.open(bundle, "memory")
    val all = Candidates.all(bundle)
    private val hasCatalogue = "catalogue${engine.suffix}" in bundle.manifest.files

    /** The table is laid out for it when the whole catalogue is ranked for the first time. */
    private val catalogue = lazy(LazyThreadSafetyMode.NONE) {
        val width = bundle.sizes.D
        val count = bundle.sizes.I
        val items = Tensor.zeros("items", Type.I8, width, count)
        for (d in 0 until width) for (row in 0 until count) {
            items.data.put(d * count + row, bundle.items.vectors.data.get(row * width + d))
        }
        engine.open(bundle, "catalogue", listOf(items, all.scales))
    }
    private val runs = LinkedHashMap<Candidates, ScoreRun>(8, 0.75f, true)

    /**
     * Scores candidates.
     *
     * @param added (I,) to all items' scores; nothing where null.
     * @return scores by place, until the next call.
     */
    fun scores(candidates: Candidates, state: State, added: FloatArray?): FloatBuffer {
        var run = runs[candidates]
        if (run == null || run.H != state.bias.size) {
            run?.close()
            run = scoring(candidates, state.bias.size)
            runs[candidates] = run
            if (runs.size > KEPT) runs.entries.iterator().run { next().value.close().also { remove() } }
        }
        return run.scores(state, added)
    }

    /** Scores of a few candidates that are asked for once, by each of some states; (states, size). */
    fun scoresOnce(candidates: Candidates, states: List<State>): List<FloatArray> =
        scoring(candidates, states[0].bias.size).use { run ->
            states.map { state -> FloatArray(candidates.size).also { run.scores(state, null).duplicate().get(it) } }
        }

    /** The same of all items, by the graph that scores the whole catalogue alone; null where there is none. */
    fun catalogueScores(state: State, added: FloatArray): FloatArray? =
        if (hasCatalogue) FloatArray(all.size).also { scores(all, state, added).duplicate().get(it) } else null

    private fun scoring(candidates: Candidates, H: Int): ScoreRun = when {
        score.isFixed -> ChunkRun(candidates, H)
        candidates === all && hasCatalogue -> WholeRun(catalogue.value, candidates, H, emptyList())
        else -> WholeRun(score, candidates, H, listOf(candidates.vectors, candidates.scales))
    }

    /** (F,) what the item memory adds to the scores of the items that it remembers, as of a time in seconds. */
    fun remembered(memory: ItemMemory, nowS: Long): FloatArray {
        val features = FloatArray(4 * memory.size)
        for (place in 0 until memory.size) {
            memory.features(place, nowS, bundle.manifest.memoryHalfLifeS, features, 4 * place)
        }
        return added(memory.items, features)
    }

    /** The same by the graph's inputs: (F,) vocabulary rows, (F, 4) features in a row. */
    fun added(rows: IntArray, features: FloatArray): FloatArray {
        if (rows.isEmpty()) return FloatArray(0)
        val chunk = if (memory.isFixed) bundle.sizes.F else rows.size
        val table = Tensor.zeros("memory", Type.F32, chunk, 4)
        val bias = Tensor.zeros("bias", Type.F32, chunk)
        val added = Tensor.zeros("added", Type.F32, chunk)
        val found = FloatArray(rows.size)
        memory.bind(listOf(table, bias), listOf(added)).use { run ->
            for (begin in rows.indices step chunk) {
                val n = minOf(chunk, rows.size - begin)
                table.floats.duplicate().put(features, 4 * begin, 4 * n)
                for (place in 0 until n) bias.floats.put(place, bundle.items.bias[rows[begin + place]])
                run.run()
                added.floats.duplicate().get(found, begin, n)
            }
        }
        return found
    }

    override fun close() {
        runs.values.forEach(ScoreRun::close)
        listOf(score, memory).forEach(Graph::close)
        if (catalogue.isInitialized()) catalogue.value.close()
    }

    /** A graph tied to some candidates and a number of state vectors. */
    private abstract inner class ScoreRun(protected val candidates: Candidates, val H: Int) : Closeable {
        protected val state = Tensor.zeros("state", Type.F32, H, bundle.sizes.D)
        protected val stateBias = Tensor.zeros("state_bias", Type.F32, H)
        private val stateTo = state.floats.duplicate()
        private val biasTo = stateBias.floats.duplicate()

        fun scores(known: State, added: FloatArray?): FloatBuffer {
            stateTo.clear()
            stateTo.put(known.vectors)
            biasTo.clear()
            biasTo.put(known.bias)
            return scores(added)
        }

        protected abstract fun scores(added: FloatArray?): FloatBuffer

        protected fun feedBias(bias: FloatBuffer, first: Int, n: Int, added: FloatArray?) {
            val own = bundle.items.bias
            val rows = candidates.rows
            for (place in 0 until n) {
                val row = rows[first + place]
                bias.put(place, if (added == null) own[row] else own[row] + added[row])
            }
        }
    }

    /** Where shapes are free: all candidates at once. */
    private inner class WholeRun(graph: Graph, candidates: Candidates, H: Int, columns: List<Tensor>) :
        ScoreRun(candidates, H) {
        private val bias = Tensor.zeros("bias", Type.F32, candidates.rows.size)
        private val scores = Tensor.zeros("scores", Type.F32, candidates.rows.size)
        private val run = graph.bind(listOf(state, stateBias, bias) + columns, listOf(scores))

        override fun scores(added: FloatArray?): FloatBuffer {
            if (candidates.size > 0) {
                feedBias(bias.floats, 0, candidates.size, added)
                run.run()
            }
            return scores.floats
        }

        override fun close() = run.close()
    }

    /** Where they are not: `score_chunk` candidates a run, the last of them filled up. */
    private inner class ChunkRun(candidates: Candidates, H: Int) : ScoreRun(candidates, H) {
        private val chunk = bundle.sizes.scoreChunk
        private val vectors = Tensor.zeros("candidates", Type.I8, chunk, bundle.sizes.D)
        private val scales = Tensor.zeros("scales", Type.F32, chunk)
        private val bias = Tensor.zeros("bias", Type.F32, chunk)
        private val part = Tensor.zeros("scores", Type.F32, chunk)
        private val scores = FloatBuffer.allocate(candidates.rows.size)
        private val run = score.bind(listOf(state, stateBias, vectors, scales, bias), listOf(part))

        override fun scores(added: FloatArray?): FloatBuffer {
            for (first in 0 until candidates.size step chunk) {
                val n = minOf(chunk, candidates.size - first)
                vectors.data.duplicate().put(candidates.vectors.part(first, n).data)
                for (place in 0 until n) scales.floats.put(place, candidates.scales.floats.get(first + place))
                feedBias(bias.floats, first, n, added)
                run.run()
                for (place in 0 until n) scores.put(first + place, part.floats.get(place))
            }
            return scores
        }

        override fun close() = run.close()
    }

    private companion object {
        const val KEPT = 4
    }
}
