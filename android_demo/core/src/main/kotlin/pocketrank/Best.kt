package pocketrank

import java.nio.FloatBuffer
import java.util.function.IntPredicate

/**
 * The k best of some candidates, by score and, where scores are equal, by the order of their ids. Makes no garbage
 * while k stays the same.
 *
 * @param order (I,) place of each vocabulary row among all; see [Items.order].
 */
internal class Best(private val order: IntArray) {
    /** Candidates' places; after [find] the first `count` of them, best first. */
    var places = IntArray(0)
        private set
    private var scores = FloatArray(0)
    private var ranks = IntArray(0)
    private var count = 0

    /**
     * Finds them.
     *
     * @param found scores, of which the first `size` count; NaN is no candidate. @param rows vocabulary rows by place.
     * @param wanted the others are none, either; by vocabulary row.
     * @return how many there are, at most k.
     */
    fun find(found: FloatBuffer, rows: IntArray, size: Int, k: Int, wanted: IntPredicate): Int {
        val most = minOf(k, size)
        if (places.size != most) {
            places = IntArray(most)
            scores = FloatArray(most)
            ranks = IntArray(most)
        }
        count = 0
        for (place in 0 until size) {
            val score = found.get(place)
            if (score.isNaN() || (count == most && score < scores[0])) continue
            val rank = order[rows[place]]
            if (count == most && !(score > scores[0] || rank < ranks[0])) continue
            if (!wanted.test(rows[place])) continue
            if (count < most) rise(count++, place, score, rank) else sink(0, most, place, score, rank)
        }
        for (last in count - 1 downTo 1) { // the worst is at the root
            val place = places[last]
            val score = scores[last]
            val rank = ranks[last]
            put(last, places[0], scores[0], ranks[0])
            sink(0, last, place, score, rank)
        }
        return count
    }

    fun score(hit: Int): Float = scores[hit]

    private fun isWorse(score: Float, rank: Int, at: Int) = score < scores[at] || (score == scores[at] && rank > ranks[at])

    private fun rise(from: Int, place: Int, score: Float, rank: Int) {
        var at = from
        while (at > 0 && isWorse(score, rank, (at - 1) / 2)) {
            move((at - 1) / 2, at)
            at = (at - 1) / 2
        }
        put(at, place, score, rank)
    }

    private fun sink(from: Int, size: Int, place: Int, score: Float, rank: Int) {
        var at = from
        while (2 * at + 1 < size) {
            var child = 2 * at + 1
            if (child + 1 < size && isWorse(scores[child + 1], ranks[child + 1], child)) child++
            if (isWorse(score, rank, child)) break
            move(child, at)
            at = child
        }
        put(at, place, score, rank)
    }

    private fun move(from: Int, to: Int) = put(to, places[from], scores[from], ranks[from])

    private fun put(at: Int, place: Int, score: Float, rank: Int) {
        places[at] = place
        scores[at] = score
        ranks[at] = rank
    }
}
