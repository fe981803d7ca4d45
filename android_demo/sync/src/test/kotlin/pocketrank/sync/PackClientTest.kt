package pocketrank.sync

import com.sun.net.httpserver.HttpServer
import org.junit.jupiter.api.AfterEach
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertTimeoutPreemptively
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.BeforeEach
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.function.ThrowingSupplier
import org.junit.jupiter.api.io.TempDir
import pocketrank.BadInput
import pocketrank.Dump
import pocketrank.FileStorage
import pocketrank.ItemId
import pocketrank.MemoryStorage
import pocketrank.Ranker
import pocketrank.ort.OrtEngine
import java.io.File
import java.io.IOException
import java.net.InetAddress
import java.net.InetSocketAddress
import java.net.ServerSocket
import java.time.Duration
import kotlin.concurrent.thread

/** Against a server of the JDK's that answers as `pocketrank serve` does. */
class PackClientTest {
    private lateinit var server: HttpServer
    private val asked = ArrayList<String>()
    private var status = 200
    private var content = ByteArray(0)
    private var meanwhile: () -> Unit = {}
    private val storage = MemoryStorage()
    private val ranker = Ranker.open(File(Dump.folder, "bundles/mean"), OrtEngine(), storage)
    private val client by lazy { PackClient("http://127.0.0.1:${server.address.port}/", "a.b.c") }

    @BeforeEach
    fun start() {
        server = HttpServer.create(InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0)
        server.createContext("/") { exchange ->
            val headers = exchange.requestHeaders
            asked.add("${exchange.requestURI} ${headers.getFirst("Authorization")} ${headers.getFirst("If-None-Match")}")
            meanwhile()
            exchange.responseHeaders.set("ETag", "\"1\"")
            exchange.responseHeaders.set("Location", "http://127.0.0.1:${server.address.port}/elsewhere")
            exchange.sendResponseHeaders(status, if (content.isEmpty()) -1 else content.size.toLong())
            if (content.isNotEmpty()) exchange.responseBody.write(content)
            exchange.close()
        }
        server.start()
    }

    @AfterEach
    fun stop() {
        server.stop(0)
        ranker.close()
    }

    private fun gone(untilUs: Long) = "{\"format\": \"pocketrank.gone/1\", \"until_us\": $untilUs}".toByteArray()

    private fun pack(name: String) = File(Dump.folder, "rankings/mean/$name.safetensors").readBytes()

    @Test
    fun `a new pack is taken in, and the same one not asked for again`() {
        content = pack("full")
        assertEquals(Synced.NEW, client.sync(ranker))
        assertEquals(6, ranker.stats().segments)
        content = ByteArray(0)
        status = 304
        assertEquals(Synced.SAME, client.sync(ranker))
        val path = "/v1/pack?encoder_id=${ranker.bundle.manifest.encoderId} Bearer a.b.c"
        assertEquals(listOf("$path null", "$path \"1\""), asked)
    }

    @Test
    fun `the pack that is there is not asked for again after a restart, but once another was loaded or none is left`(@TempDir home: File) {
        fun asked(then: (Ranker) -> Unit): String = FileStorage(home).use { kept ->
            Ranker.open(File(Dump.folder, "bundles/mean"), OrtEngine(), kept).use { ranker ->
                PackClient("http://127.0.0.1:${server.address.port}", "a.b.c").sync(ranker)
                then(ranker)
            }
            asked.last().substringAfterLast(" ")
        }
        content = pack("full")
        assertEquals("null", asked { })
        assertEquals("\"1\"", asked { it.load(content, "the app's own") })
        assertEquals("null", asked { })
        assertEquals("\"1\"", asked(Ranker::forget))
        assertEquals("null", asked { })
    }

    @Test
    fun `what the server says otherwise changes nothing`() {
        content = pack("full")
        client.sync(ranker)
        val refused = listOf(200 to pack("of_another_encoder"), 200 to pack("short"), 200 to ByteArray(9), 401 to null, 302 to null) +
            NO_GONE.map { 410 to it.toByteArray() }
        for ((code, body) in refused) {
            status = code
            content = body ?: ByteArray(0)
            assertEquals(Synced.REFUSED, client.sync(ranker), "$code")
            assertTrue(client.problem!!.isNotEmpty())
        }
        content = ByteArray(0)
        for ((code, wanted) in listOf(404 to Synced.NONE, 500 to Synced.OFFLINE, 503 to Synced.OFFLINE, 429 to Synced.OFFLINE)) {
            status = code
            assertEquals(wanted, client.sync(ranker), "$code")
        }
        assertTrue(asked.none { it.startsWith("/elsewhere") }, "a redirect was followed")
        assertEquals(6, ranker.stats().segments)
    }

    @Test
    fun `a user whom the server forgot is forgotten here up to that time, and no pack of before is taken again`(@TempDir home: File) {
        val old = pack("full")
        FileStorage(home).use { kept ->
            Ranker.open(File(Dump.folder, "bundles/mean"), OrtEngine(), kept).use { ranker ->
                content = old
                assertEquals(Synced.NEW, client.sync(ranker))
                val untilUs = ranker.stats().through!!.timeUs + 1_000_000
                for (atUs in listOf(untilUs - 1, untilUs, untilUs + 1)) ranker.observe(ItemId.of("item-01"), atUs = atUs)
                status = 410
                content = gone(untilUs)
                assertEquals(Synced.GONE, client.sync(ranker))
                assertEquals(0, ranker.stats(untilUs + 2).segments)
                assertEquals(null, kept.pack)
                assertEquals(listOf(untilUs + 1), kept.events.map { it.timeUs })
                ranker.observe(ItemId.of("item-01"), atUs = untilUs)
                for (again in listOf(untilUs, untilUs - 1)) {
                    content = gone(again)
                    assertEquals(Synced.GONE, client.sync(ranker))
                }
                assertEquals(2, kept.events.size, "what was done is done again")
            }
        }
        FileStorage(home).use { kept ->
            Ranker.open(File(Dump.folder, "bundles/mean"), OrtEngine(), kept).use { ranker ->
                status = 200
                content = old
                assertEquals(Synced.REFUSED, client.sync(ranker))
                assertTrue("before the user was forgotten" in client.problem!!, client.problem)
                assertEquals(null, kept.pack)
                ranker.forget()
                assertEquals(Synced.NEW, client.sync(ranker), "of who uses the phone next nothing was forgotten")
            }
        }
    }

    @Test
    fun `what was asked for before the user was forgotten, or the ranker closed, is not taken`() {
        for (leave in listOf<(Ranker) -> Unit>({ it.forget() }, { it.forget(untilUs = 0) }, { it.close() })) {
            for ((code, body) in listOf(200 to pack("full"), 410 to gone(untilUs = 10))) {
                val kept = MemoryStorage()
                val ranker = Ranker.open(File(Dump.folder, "bundles/mean"), OrtEngine(), kept)
                status = code
                content = body
                meanwhile = {
                    leave(ranker)
                    ranker.observe(ItemId.of("item-01"), atUs = 5) // of who uses the phone next
                }
                assertEquals(Synced.REFUSED, client.sync(ranker), "$code")
                assertEquals("the user was forgotten meanwhile, or the ranker closed; sync again", client.problem)
                assertEquals(listOf(null, 1), listOf(kept.pack, kept.events.size))
            }
        }
        meanwhile = {}
        status = 200
        content = pack("full")
        assertEquals(Synced.NEW, client.sync(ranker))
    }

    /** Syncs with a server that begins an answer and then sends a byte now and then; gives back the server's thread. */
    private fun trickled(begin: String): Thread = ServerSocket(0, 1, InetAddress.getLoopbackAddress()).use { slow ->
        val serving = thread(isDaemon = true) {
            slow.accept().use { socket ->
                try {
                    socket.getOutputStream().write("HTTP/1.1 200 $begin".toByteArray())
                    while (true) {
                        Thread.sleep(20)
                        socket.getOutputStream().write('x'.code)
                    }
                } catch (_: IOException) {
                    // nobody takes it any more
                }
            }
        }
        val client = PackClient("http://127.0.0.1:${slow.localPort}", "a.b.c")
        client.wholeMs = 300
        val found = assertTimeoutPreemptively(Duration.ofSeconds(60), ThrowingSupplier { client.sync(ranker) })
        assertEquals(Synced.OFFLINE, found, begin)
        serving
    }

    @Test
    fun `a server that sends a byte now and then holds nobody`() {
        for (begin in listOf("", "OK\r\nX: ")) {
            val serving = trickled(begin)
            serving.join(60_000)
            assertFalse(serving.isAlive, "the connection is still there: $begin")
        }
        // Bodies a JVM reads on for a while, by a thread of its own.
        for (begin in listOf("Content-Length: 99999\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n9;x=")) trickled("OK\r\n$begin")
    }

    @Test
    fun `what a network library raises besides is told, and whoever is interrupted has no answer`() {
        ranker.load(pack("full"), "full")
        ranker.etag = "no\nheader"
        assertEquals(Synced.REFUSED, client.sync(ranker))
        assertTrue(client.problem!!.startsWith("http://127.0.0.1:${server.address.port} cannot be asked: "), client.problem)
        ranker.etag = null
        Thread.currentThread().interrupt()
        assertEquals(Synced.OFFLINE, client.sync(ranker))
        assertTrue(Thread.interrupted())
        content = pack("full")
        assertEquals(Synced.NEW, client.sync(ranker))
    }

    @Test
    fun `nobody there is no error, and a token goes to no address in the open`() {
        server.stop(0)
        assertEquals(Synced.OFFLINE, client.sync(ranker))
        for (address in listOf("http://sync.example.org", "ftp://localhost", "localhost", "http://127.0.0.1.example.org", "") + NO_ADDRESS) {
            assertThrows<BadInput>(address) { PackClient(address, "a.b.c") }
        }
        PackClient("http://192.0.2.7:8000", "a.b.c", insecure = true)
        PackClient("https://sync.example.org:8443/base", "a.b.c")
        PackClient("http://localhost:8000", "a.b.c")
        for (token in listOf("", "a b", "a\nb", "é")) assertThrows<BadInput> { PackClient("https://sync.example.org", token) }
    }

    private companion object {
        val NO_GONE = listOf(
            "", "<html>410 Gone</html>", "{}", "[1]", "{\"format\": \"pocketrank.gone/1\"}",
            "{\"format\": \"pocketrank.gone/2\", \"until_us\": 1}", "{\"format\": \"pocketrank.gone/1\", \"until_us\": \"soon\"}",
            "{\"format\": \"pocketrank.gone/1\", \"until_us\": 9223372036854775807}",
            "{\"format\": \"pocketrank.gone/1\", \"until_us\": 1}" + " ".repeat(1000),
        )
        val NO_ADDRESS = listOf(
            "http://localhost:x@evil.example.org", "http://localhost@evil.example.org", "http://127.0.0.1:80@evil.example.org/",
            "https://localhost:x@evil.example.org", "http://evil.example.org#localhost", "http://evil.example.org?@localhost",
            "http://localhost\\@evil.example.org", "https://", "https:///v1", "https://sync.example.org:65536", "http://localhost:99999",
        )
    }
}
