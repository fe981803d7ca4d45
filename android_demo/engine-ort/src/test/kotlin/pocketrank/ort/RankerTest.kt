package pocketrank.ort

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir
import pocketrank.BadInput
import pocketrank.Dump
import pocketrank.FileStorage
import pocketrank.ItemId
import pocketrank.Pack
import pocketrank.Ranker
import java.io.File

/** What a ranker is asked and told, beside the rankings of the dump. */
class RankerTest {
    private val folder = File(Dump.folder, "bundles/mean")
    private val pack = File(Dump.folder, "rankings/mean/full.safetensors").readBytes()

    @Test
    fun `a score over what sums stay finite with is refused, and the greatest one ranks`() {
        Ranker.open(folder, OrtEngine()).use { ranker ->
            val ids = ranker.bundle.items.ids
            for (score in listOf(-1.0, 1e12 + 1, 1.5e38, Double.POSITIVE_INFINITY, Double.NaN)) {
                val said = assertThrows<BadInput> { ranker.observe(ids[0], score = score, atUs = NOW_US) }.message
                assertEquals("observe: score is $score, wanted a number of 0 to 1e+12", said)
            }
            ranker.observe(ids[0], score = 0.0, atUs = NOW_US)
            for (number in 1..4) ranker.observe(ids[number], score = 1e12, atUs = NOW_US)
            for (nowUs in listOf(NOW_US, NOW_US + 365 * DAY_US)) {
                val hits = ranker.rank(ids.size, nowUs = nowUs).hits
                assertEquals(ids.size, hits.size)
                assertTrue(hits.all { it.score.isFinite() })
            }
        }
    }

    @Test
    fun `items that the pack remembers, that its segments name and of events are those that the user has seen`() {
        Ranker.open(folder, OrtEngine()).use { ranker ->
            ranker.load(pack, "full")
            val nowUs = ranker.stats().through!!.timeUs + DAY_US
            val ids = ranker.bundle.items.ids
            val named = ranker.history(nowUs).flatMap { it.items }
            val live = (ids - named.toSet()).last()
            ranker.observe(live, atUs = nowUs)
            val memory = Pack.read(pack, "full").memory.items.map(ids::get)
            assertTrue(named.any { it !in memory } && memory.any { it !in named })
            val found = ranker.rank(ids.size, excludeSeen = true, nowUs = nowUs).hits.map { it.item }
            val wanted = ranker.rank(ids.size, nowUs = nowUs).hits.map { it.item } - named.toSet() - memory.toSet() - live
            assertEquals(wanted, found)
        }
    }

    @Test
    fun `a closed ranker leaves its storage to the next one`(@TempDir home: File) {
        FileStorage(home).use { storage ->
            for (number in 1..2) {
                Ranker.open(folder, OrtEngine(), storage).use { it.observe(ItemId.of("item-01"), atUs = NOW_US) }
                assertEquals(number, storage.events.size)
            }
        }
    }

    @Test
    fun `a ranker that is closed again stays closed`() {
        val ranker = Ranker.open(folder, OrtEngine())
        repeat(2) { ranker.close() }
        assertThrows<IllegalStateException> { ranker.rank(nowUs = NOW_US) }
    }

    private companion object {
        const val NOW_US = 1_700_000_000_000_000
        const val DAY_US = 86_400_000_000
    }
}
