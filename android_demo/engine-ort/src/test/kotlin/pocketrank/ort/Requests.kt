package pocketrank.ort

import com.sun.management.ThreadMXBean
import pocketrank.ItemId
import pocketrank.Ranker
import java.io.File
import java.lang.management.ManagementFactory

/** What a request costs: `benchmarks.android` runs this beside the Python runtime; [GarbageTest] holds its garbage. */
class Requests(private val ranker: Ranker, ids: List<ItemId>, private val nowUs: Long) {
    private val prepared = ranker.prepare(ids)

    /** By the names that `benchmarks.request` has. */
    val kinds: Map<String, () -> Unit> = mapOf(
        "rank" to {
            ranker.changed()
            ranker.rank(10, prepared, nowUs = nowUs)
        },
        "rank_cached_state_ids" to { ranker.rank(10, ids, nowUs = nowUs) },
        "rank_cached_state" to { ranker.rank(10, prepared, nowUs = nowUs) },
        "catalogue" to { ranker.rank(10, nowUs = nowUs) },
    )

    /** Bytes that one request leaves to the garbage collector, on average. */
    fun garbage(request: () -> Unit, times: Int = 500): Long {
        repeat(times) { request() }
        val threads = ManagementFactory.getThreadMXBean() as ThreadMXBean
        val id = Thread.currentThread().id
        val before = threads.getThreadAllocatedBytes(id)
        repeat(times) { request() }
        return (threads.getThreadAllocatedBytes(id) - before) / times
    }

    /** Median milliseconds of each kind: all in turn, so that a busy moment slows all alike. */
    fun milliseconds(rounds: Int): Map<String, Double> {
        val taken = kinds.mapValues { DoubleArray(rounds) }
        for (round in -rounds until rounds) for ((name, request) in kinds) { // the first half warms up
            repeat(2) { request() }
            val begin = System.nanoTime()
            request() // finds its data where the ones before left them
            if (round >= 0) taken.getValue(name)[round] = (System.nanoTime() - begin) / 1e6
        }
        return taken.mapValues { it.value.sorted()[rounds / 2] }
    }
}

/** `RequestsKt BUNDLE PACK NOW_S ROUNDS ID...`: prints JSON. */
fun main(arguments: Array<String>) {
    val (bundle, pack, nowS, rounds) = arguments
    val nowUs = nowS.toLong() * 1_000_000
    val ids = arguments.drop(4).map { ItemId.of(it) }
    Ranker.open(File(bundle), OrtEngine()).use { ranker ->
        ranker.load(File(pack).readBytes(), pack)
        for (number in 0 until 16) {
            ranker.observe(ranker.bundle.items.ids[number], "view", atUs = nowUs - 60_000_000L * (16 - number))
        }
        val stats = ranker.stats(nowUs)
        check(stats.segments == 32 && stats.liveEvents == 16) { "${stats.segments} segments, ${stats.liveEvents} events" }
        val requests = Requests(ranker, ids, nowUs)
        val best = ranker.rank(10, ids, nowUs = nowUs).hits.map { "\"${it.item}\"" }
        val ms = requests.milliseconds(rounds.toInt()).map { (name, value) -> "\"$name\": $value" }
        val garbage = requests.kinds.map { (name, request) -> "\"$name\": ${requests.garbage(request)}" }
        println("{\"best\": $best, \"ms\": {${ms.joinToString()}}, \"garbage\": {${garbage.joinToString()}}}")
    }
}
