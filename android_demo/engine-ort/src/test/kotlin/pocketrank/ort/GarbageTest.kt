package pocketrank.ort

import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import pocketrank.Dump
import pocketrank.Ranker
import java.io.File

class GarbageTest {
    @Test
    fun `a request leaves less than 20 KB to the garbage collector`() {
        for (name in listOf("mean", "maxsim")) {
            Ranker.open(File(Dump.folder, "bundles/$name"), OrtEngine()).use { ranker ->
                val nowUs = 1_700_000_000_000_000
                ranker.load(File(Dump.folder, "rankings/$name/full.safetensors").readBytes(), "full")
                ranker.observe(ranker.bundle.items.ids[3], atUs = nowUs)
                val requests = Requests(ranker, List(500) { ranker.bundle.items.ids[it % 40] }, nowUs)
                for ((kind, request) in requests.kinds) {
                    val bytes = requests.garbage(request)
                    assertTrue(bytes in 1..20_000, "$name $kind: $bytes bytes")
                }
            }
        }
    }
}
