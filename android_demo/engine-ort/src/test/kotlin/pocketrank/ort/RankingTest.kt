package pocketrank.ort

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.TestFactory
import pocketrank.BadPack
import pocketrank.Bundle
import pocketrank.BundleMismatch
import pocketrank.Dump
import pocketrank.Dump.double
import pocketrank.Dump.list
import pocketrank.Dump.long
import pocketrank.Dump.text
import pocketrank.ItemId
import pocketrank.Ranker
import pocketrank.Ranking
import pocketrank.Reason
import pocketrank.SelfTest
import java.io.File

/** Every bundle of a dump on the real engine: golden cases, and every ranking with its order, segments and reasons. */
class RankingTest {
    private val engine = OrtEngine()
    private val bundles = File(Dump.folder, "bundles").listFiles()!!.sorted()

    @TestFactory
    fun `golden cases hold`() = bundles.map { folder ->
        DynamicTest.dynamicTest(folder.name) {
            val parity = SelfTest(Bundle.open(folder), engine).run()
            assertTrue(parity.ok && parity.cases == 64, "$parity")
            assertTrue(parity.maxAbsDiff > 0, "nothing was compared")
        }
    }

    @TestFactory
    fun `every ranking is the server's`() = bundles.map { folder ->
        DynamicTest.dynamicTest(folder.name) {
            val cases = Dump.cases("rankings/${folder.name}/cases.json")
            assertTrue(cases.size > 20)
            Ranker.open(folder, engine).use { ranker ->
                for (case in cases) {
                    Replay(ranker, folder.name, case).run()
                    ranker.forget()
                }
            }
        }
    }

    private class Replay(val ranker: Ranker, bundle: String, val case: Map<String, Any?>) {
        private val packs = File(Dump.folder, "rankings/$bundle")
        private val name = "$bundle ${case.text("name")}"
        private val nowUs = case.long("now_us")

        fun run() {
            case.list("packs").forEach { load(it as String) }
            case.list("events").forEachIndexed { number, event ->
                @Suppress("UNCHECKED_CAST")
                observe(number, event as Map<String, Any?>)
            }
            val ranking = ranked()
            val stats = ranker.stats(nowUs)
            assertEquals(case.long("segments"), stats.segments.toLong(), name)
            assertEquals(case.long("live_events"), stats.liveEvents.toLong(), name)
            assertEquals(case.long("remembered_items"), stats.rememberedItems.toLong(), name)
            checkHits(ranking)
            case.list("reasons").forEachIndexed { place, wanted -> checkReasons(ranking.hits[place].reasons, wanted as List<*>) }
        }

        private fun load(pack: String) {
            val refused = try {
                ranker.load(File(packs, "$pack.safetensors").readBytes(), pack)
                false
            } catch (_: BadPack) {
                true
            } catch (_: BundleMismatch) {
                true
            }
            assertEquals(pack in case.list("refused"), refused, "$name: $pack")
        }

        private fun observe(number: Int, event: Map<String, Any?>) {
            val atUs = event.long("at_us")
            if (number % 4 == 2) ranker.rank(1, nowUs = atUs) // what is asked in between changes nothing
            ranker.observe(ItemId.of(event.text("item")), event.text("behavior"), event.double("score"), atUs)
        }

        private fun ranked(): Ranking {
            val k = case.long("k").toInt()
            val excludeSeen = case.getValue("exclude_seen") as Boolean
            val ids = (case["candidates"] as List<*>?)?.map { ItemId.of(it as String) }
            return if (ids == null) ranker.rank(k, null, excludeSeen, nowUs) else ranker.rank(k, ids, excludeSeen, nowUs)
        }

        private fun checkHits(ranking: Ranking) {
            val wanted = case.list("hits").map { it as Map<*, *> }.map { it["item"] to Dump.number(it["score"]) }
            assertEquals(wanted.size, ranking.hits.size, name)
            val scoreOf = wanted.toMap()
            ranking.hits.zip(wanted).forEachIndexed { place, (hit, expected) ->
                val (item, score) = expected
                assertEquals(score, hit.score.toDouble(), 1e-5 * maxOf(1.0, Math.abs(score)), "$name, place $place")
                val isTie = Math.abs(scoreOf.getValue(hit.item.toString()) - score) < TIE
                assertTrue(hit.item.toString() == item || isTie, "$name, place $place: ${hit.item}, wanted $item")
            }
            ranking.hits.zipWithNext().forEach { (a, b) ->
                assertTrue(a.score > b.score || (a.score == b.score && a.item < b.item), "$name: $a before $b")
            }
        }

        /** By what they are of: those that add the same may stand in another order. */
        private fun checkReasons(found: List<Reason>, wanted: List<*>) {
            val ours = found.associate { listOf<Any?>(it.kind.name.lowercase(), it.startS, it.endS, it.items.map { "$it" }) to it.added }
            val theirs = wanted.map { it as Map<*, *> }
                .associate { listOf<Any?>(it["kind"], it["start_s"], it["end_s"], it["items"]) to Dump.number(it["added"]) }
            assertEquals(theirs.keys, ours.keys, name)
            for ((part, added) in theirs) assertEquals(added, ours.getValue(part), 1e-4, "$name: $part")
            assertTrue(found.zipWithNext().all { (a, b) -> a.added >= b.added }, name)
        }
    }

    private companion object {
        const val TIE = 2e-5
    }
}
